"""Clips as others make them: mixed sizes, rates and lengths, edit lists, rotation, and what is broken."""

from fractions import Fraction

import av
import numpy as np
import pytest
from clips import cut_short, numbered, numbers, start_later, turn, write_clip

from dualipo.critic.frames import sample_frames
from dualipo.errors import UserError
from dualipo.media.conform import Shape, conform, fit
from dualipo.media.video import check_clip, decode_clip, evenly_in_time, frame_times, nearest, sample_clip


@pytest.mark.parametrize("fps", [8, 23.976, 60])
@pytest.mark.parametrize("total", [1, 17, 40])
def test_at_a_constant_rate_even_in_time_is_even_in_number(tmp_path, fps, total):
    path = write_clip(tmp_path / "a.mp4", numbered(total), fps)
    by_number = sample_frames(np.arange(total)[None, :, None, None, None]).ravel().tolist()
    assert numbers(sample_clip(path, 16)) == by_number
    assert np.array_equal(sample_clip(path, 16), decode_clip(path)[by_number])


def test_at_a_variable_rate_frames_are_taken_by_their_time(tmp_path):
    # 20 frames in the first second, then 10 more, a second apart: by number two thirds would show the first second.
    times = [50 * k for k in range(20)] + [1000 * k for k in range(1, 11)]
    path = write_clip(tmp_path / "a.mp4", numbered(30), 25, times)
    assert [round(float(time) * 1000) for time in frame_times(path)] == times
    expected = [min(range(30), key=lambda k: abs(times[k] - 10000 * m / 15)) for m in range(16)]
    assert numbers(sample_clip(path, 16)) == expected
    assert sum(number < 20 for number in expected) == 2


def test_a_picture_that_stands_still_is_shown_several_times(tmp_path):
    times = [*range(0, 160, 10), 8000]
    path = write_clip(tmp_path / "a.mp4", numbered(17), 25, times)
    shown = numbers(sample_clip(path, 16))
    assert len(shown) == 16 and shown == [0] + [15] * 7 + [16] * 8


@pytest.mark.parametrize("moments", [[0.0, 0.4, 0.6, 1.0], [-1, 9], [0.5], [1.0, 1.2]])
def test_nearest_is_the_least_distance(moments):
    at = np.array([0.0, 1.0, 1.1, 4.0])
    assert nearest(at, np.array(moments)) == [int(np.argmin(abs(at - moment))) for moment in moments]
    assert nearest(at[:1], np.array(moments)) == [0] * len(moments)


def test_few_frames_come_whole():
    assert evenly_in_time([0, 1, 5], 3) == [0, 1, 2]
    assert evenly_in_time([0, 1, 2, 3, 10], 3) == [0, 3, 4]
    assert evenly_in_time([Fraction(k, 7) for k in range(5)], 2) == [0, 4]


def test_sampling_holds_only_what_it_samples(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", numbered(60))
    converted = []
    from dualipo.media import video

    original = video._pixels
    monkeypatch.setattr(video, "_pixels", lambda frame: converted.append(1) or original(frame))
    sample_clip(path, 16)
    assert len(converted) == 16
    check_clip(path)
    assert len(converted) == 16


@pytest.mark.parametrize(("height", "width", "fps", "total"), [(48, 64, 8, 9), (64, 48, 30, 20), (120, 208, 24, 33)])
def test_size_and_length_are_what_was_written(tmp_path, height, width, fps, total):
    info = check_clip(write_clip(tmp_path / "a.mp4", numbered(total, height, width), fps))
    assert (info.frames, info.height, info.width) == (total, height, width)
    assert info.seconds == pytest.approx((total - 1) / fps, abs=1e-3)


def test_a_start_moved_by_an_edit_list_is_no_truncation(tmp_path):
    path = write_clip(tmp_path / "a.mp4", numbered(30), 10)
    with av.open(str(path)) as container:
        ticks = container.streams.video[0].time_base.denominator
    start_later(path, ticks)
    assert numbers(decode_clip(path)) == list(range(10, 30))
    assert check_clip(path).frames == 20
    assert numbers(sample_clip(path, 4)) == [10, 16, 23, 29]


def test_a_turned_picture_stands_upright(tmp_path):
    path = write_clip(tmp_path / "a.mp4", numbered(3, 48, 64))
    before = decode_clip(path)
    turn(path)
    after = decode_clip(path)
    assert after.shape == (3, 64, 48, 3) and check_clip(path).height == 64
    assert np.array_equal(after, before.transpose(0, 2, 1, 3)[:, :, ::-1]), "a quarter clockwise"
    assert after[0, 8, 40].mean() > 200 > 60 > after[0, 8, 8].mean(), "white moves from top left to top right"


@pytest.mark.parametrize(
    "read", [decode_clip, check_clip, lambda path: sample_clip(path, 16)], ids=["all", "check", "16"]
)
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), r"no such clip"),
        (lambda path: path.write_bytes(b""), r"not a readable clip \(.*\); replace it or drop its rows"),
        (lambda path: path.write_text("not a video"), r"not a readable clip \(.*\); replace it or drop its rows"),
        (lambda path: cut_short(path, 0.3), r"not a readable clip \(.*\); replace it or drop its rows"),
    ],
    ids=["missing", "empty", "text", "without index"],
)
def test_a_broken_clip_is_named(tmp_path, read, damage, expected):
    path = write_clip(tmp_path / "a.mp4", numbered(30))
    damage(path)
    with pytest.raises(UserError, match=rf"^{path}: {expected}$"):
        read(path)


@pytest.mark.parametrize(
    "read", [decode_clip, check_clip, lambda path: sample_clip(path, 4)], ids=["all", "check", "4"]
)
def test_a_download_that_broke_off_is_truncated(tmp_path, read):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = write_clip(tmp_path / "a.mp4", noise, options={"movflags": "faststart"})
    cut_short(path, 0.6)
    with pytest.raises(UserError, match=rf"^{path}: (truncated, \d+ of 30 frames decode|not a readable clip \(.*\)); "):
        read(path)


def test_a_file_without_pictures_is_no_clip(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UserError, match=r"not a readable clip \(no picture in it\)"):
        decode_clip(path)


# ---- to one shape


@pytest.mark.parametrize(("fps", "total"), [(8, 9), (24, 25), (29.97, 31), (60, 61)])
def test_any_rate_becomes_one_rate(tmp_path, fps, total):
    path = write_clip(tmp_path / "a.mp4", numbered(total), fps)
    clip = conform(path, Shape(frames=5, fps=4, height=48, width=64))
    assert clip.shape == (5, 48, 64, 3)
    assert numbers(clip) == [round(k * fps / 4) for k in range(5)]


def test_a_clip_that_is_too_short_is_refused(tmp_path):
    path = write_clip(tmp_path / "a.mp4", numbered(8), 8)
    assert len(conform(path, Shape(frames=9, fps=8, height=48, width=64))) == 9, "the last frame lasts an eighth, too"
    with pytest.raises(
        UserError, match=rf"{path}: lasts 1\.00 s, 1\.12 s are needed; ask for fewer frames or leave it"
    ):
        conform(path, Shape(frames=10, fps=8, height=48, width=64))


@pytest.mark.parametrize(("height", "width"), [(40, 40), (20, 80), (90, 30), (7, 11)])
def test_padding_keeps_the_whole_picture_and_cropping_leaves_no_border(height, width):
    clip = np.full((2, height, width, 3), 200, np.uint8)
    padded = fit(clip, Shape(2, 8, 48, 64))
    inside = padded[0, :, :, 0] > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert padded.shape == (2, 48, 64, 3)
    assert len(rows) == 48 or len(columns) == 64, "it fills one direction"
    assert len(rows) / len(columns) == pytest.approx(height / width, rel=0.06), "evenly scaled"
    assert abs(rows[0] - (47 - rows[-1])) <= 1 and abs(columns[0] - (63 - columns[-1])) <= 1, "in the middle"
    cropped = fit(clip, Shape(2, 8, 48, 64, "crop"))
    assert cropped.shape == (2, 48, 64, 3) and (cropped == 200).all()


def test_a_crop_is_the_middle():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[None, None, :, None], (1, 48, 100, 3))
    assert fit(ramp, Shape(1, 8, 48, 64, "crop"))[0, 0, :, 0].tolist() == list(range(18, 82))
    same = numbered(2, 48, 64)
    assert np.array_equal(fit(same, Shape(2, 8, 48, 64)), same)
    assert np.array_equal(fit(same, Shape(2, 8, 48, 64, "crop")), same)
