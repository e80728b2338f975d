"""load_data: fetches the data folder from anywhere."""

from kfp import dsl
from kfp.dsl import Dataset, Model, Output

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def load_data(
    library: str,
    data: str,
    data_md5: str,
    models_params: str,
    generator: Output[Model],
    critic: Output[Model],
    critic_reference: Output[Model],
    seed: Output[Dataset],
    test: Output[Dataset],
    real: Output[Dataset],
    benchmark: Output[Dataset],
) -> None:
    """Base models, labels, real clips and held-out prompts, of the URI `data` and the md5 `data_md5`, or of the hub."""
    from dualipo.pipeline.call import load_data

    load_data(locals())
