"""Clips as files: mp4 in and out, folders and shards of them, contact sheets."""
