"""One model on OpenVINO in an environment of its own: its ONNX Runtime overwrites the usual one's.

Started by `merkit_bench.precision` with another environment's interpreter, so it imports nothing
of merkit's. Reads a line, runs the model once, writes the milliseconds; so it takes turns.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, at import


def main() -> None:
    """Arguments: model, inputs (.npz), precision hint (f32, bf16), threads."""
    import numpy as np
    import onnxruntime as ort

    model, inputs, hint, threads = sys.argv[1:]
    config = {"CPU": {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}}
    options = ort.SessionOptions()
    options.log_severity_level = 4
    provider = {"device_type": "CPU", "load_config": json.dumps(config)}
    session = ort.InferenceSession(
        model, options, providers=["OpenVINOExecutionProvider"], provider_options=[provider]
    )
    held = np.load(inputs)
    wanted = {node.name for node in session.get_inputs()}
    feed = {name: held[name] for name in held.files if name in wanted}
    first = session.run(None, feed)[0]
    print(
        json.dumps({"provider": session.get_providers()[0], "output": first.tolist()}), flush=True
    )
    for _ in sys.stdin:
        start = time.perf_counter()
        session.run(None, feed)
        print(1e3 * (time.perf_counter() - start), flush=True)


if __name__ == "__main__":
    main()
