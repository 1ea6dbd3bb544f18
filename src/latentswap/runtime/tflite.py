"""Compiling a published .tflite network with OpenVINO, its outputs known by their sizes."""

from pathlib import Path

import numpy as np
import openvino

from latentswap.errors import WeightsError


def compile_tflite(
    path: str | Path, sizes: tuple[int, ...], *, name: str, threads: int | None = None
) -> tuple[openvino.CompiledModel, tuple[int, ...]]:
    """The compiled network, and which of its outputs has each of these numbers of elements.

    name: the file that is expected, for the message. threads: CPU threads; OpenVINO's choice when absent.
    Raises WeightsError when the file is missing or is not that network.
    """
    core = openvino.Core()
    # Without the hint, CPUs with AVX512-BF16 compute in bfloat16 and points move by whole pixels.
    config: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        model = core.read_model(Path(path))
        outputs = {int(np.prod(list(output.shape))): index for index, output in enumerate(model.outputs)}
        found = tuple(outputs[size] for size in sizes)
        return core.compile_model(model, "CPU", config), found
    except (RuntimeError, KeyError) as error:
        raise WeightsError(f"{path} is not MediaPipe's {name}: fetch the weights again") from error
