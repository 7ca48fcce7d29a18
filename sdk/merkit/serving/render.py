"""Renders bundles' deployment files, so that no config.pbtxt is ever written by hand.

Hand-written configs drift from the pipeline they serve. Here each one follows from the
contract's steps, and each ensemble from a cut through them (`merkit.pipeline.prune`). Rendered
files differ per host; they are neither hashed nor signed (design 2), and equal input gives
equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from merkit.bundle import DEPLOYMENT_NAMES, MANIFEST, SAMPLES, SIGNATURES, Bundle
from merkit.contract import MODALITIES, Contract, StepSpec, canonical
from merkit.errors import InvalidInputError
from merkit.media.limits import Limits
from merkit.pipeline import absent_tensors
from merkit.plans import ON_HOST, plans_of, triton_fields
from merkit.serving.batching import batch_fields, collecting, collects, permitted, wire
from merkit.serving.config import (
    CONSTANTS,
    HEAD,
    Names,
    config_text,
    plain_names,
    versioned_names,
)
from merkit.serving.constants import BATCH
from merkit.serving.deployment import (
    DEFAULT,
    FLAVOURS,
    Deployment,
    Flavour,
    StepDeployment,
    check_choices,
)
from merkit.serving.ensembles import (
    AFTER,
    column,
    ensemble_config,
    parallel_steps,
    rendered_entries,
)
from merkit.serving.lazy_model import NAME as LAZY
from merkit.serving.lazy_model import lazy_config
from merkit.serving.warmup import make_samples, warm_up

__all__ = ["AFTER", "FLAVOURS", "Deployment", "Flavour", "backend", "render", "step_config"]

Samples = Mapping[str, dict[str, NDArray[Any]]]
MODEL_PY = '''"""Rendered by merkit: Triton's entry into a model, whose code lies in the package."""

from merkit.serving.{module} import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
MANIFEST_OF = "bundle-{}.json"
"""The manifest's name beside those of other bundles."""
NO_CACHE = "__pycache__"
"""A file where Python would make a folder. What a stub writes there changes the model's folder,
and Triton, asked to load another bundle, would load this model anew."""
KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


def render(
    bundle: Bundle,
    out: Path,
    deployment: Deployment = DEFAULT,
    *,
    versioned: bool = False,
    copy: bool = False,
) -> list[Path]:
    """Writes what Triton needs to serve `bundle` from the folder `out`, and returns those files.

    Args:
        bundle: an opened bundle.
        out: the bundle's own folder, or a new or empty one, which then becomes a repository
            that links to the bundle's content. Versioned, a repository that was rendered so
            before takes the bundle in beside those that it has.
        deployment: this host's choices.
        versioned: name models after what they hold, so that bundles can share a repository.
        copy: copy the content instead of linking to it, for a repository that is to travel.

    Raises:
        InvalidInputError: `out` holds something else, or the deployment names what is not there.
        MissingExtraError: tritonclient, which holds the config's schema, is not installed.
    """
    _check(bundle, deployment)
    names = versioned_names(bundle) if versioned else plain_names(bundle.contract)
    files = _files(bundle, deployment, names)  # all text first: what fails here writes nothing
    elsewhere = out.resolve() != bundle.root.resolve()
    if versioned or elsewhere:
        _check_folder(bundle, out, versioned)
    with _empty_if_it_fails(out):
        if versioned or elsewhere:
            _place_content(bundle, out, names, deployment, copy)
        for name, content in files.items():
            _write(out / name, content)
            if name.endswith("/model.py") and elsewhere:
                (out / name).with_name(NO_CACHE).touch()
        _remove_stale(out, files, keep_models=versioned)
    return [out / name for name in files]


def backend(step: StepSpec, deployment: Deployment) -> str:
    """The name of Triton's backend that runs `step`. Steps that get no plan run on ONNX Runtime
    where TensorRT is the choice for all."""
    if step.kind == "python":
        return "python"
    own = deployment.steps.get(step.name)
    if step.name in ON_HOST and deployment.flavour == "tensorrt" and not (own and own.flavour):
        return "onnxruntime"
    return str(deployment.of(step.name).flavour)


def _files(bundle: Bundle, deployment: Deployment, names: Names) -> dict[str, str | bytes]:
    """What is rendered, by its name below the repository."""
    files: dict[str, str | bytes] = {}
    samples = None
    if any(deployment.of(step.name).warm_up for step in bundle.contract.steps):
        samples = make_samples(bundle, deployment.warm_up_clips)
    for step in bundle.contract.steps:
        folder = names.models[step.name]
        files[f"{folder}/config.pbtxt"] = step_config(bundle, step, deployment, names, samples)
        files |= {
            f"{folder}/{SAMPLES}/{name}": content
            for name, content in step_samples(bundle, step, deployment, samples)[1].items()
        }
        if backend(step, deployment) == "python":
            files[f"{folder}/1/model.py"] = MODEL_PY.format(module="runner", name="StepModel")
    folder = names.models[CONSTANTS]
    files[f"{folder}/config.pbtxt"] = constants_config(bundle, names)
    files[f"{folder}/1/model.py"] = MODEL_PY.format(module="constants", name="ConstantsModel")
    folder = names.entry(LAZY)
    files[f"{folder}/config.pbtxt"] = lazy_config(bundle, names, deployment.queue.max_size)
    files[f"{folder}/1/model.py"] = MODEL_PY.format(module="lazy_model", name="LazyModel")
    for entry in rendered_entries(bundle.contract, deployment).values():
        folder = names.entry(entry.name)
        files[f"{folder}/config.pbtxt"] = ensemble_config(bundle, entry, names)
        files[f"{folder}/1/.gitkeep"] = ""  # Triton wants the folder, and git drops empty ones
    return files


def step_choice(bundle: Bundle, step: StepSpec, deployment: Deployment) -> StepDeployment:
    """This host's choices for a step, without the limits that its queue must not have."""
    choice = deployment.of(step.name)
    gathers = collects(bundle.contract, step, backend(step, deployment))
    if gathers:
        own = deployment.steps.get(step.name, StepDeployment())
        choice = collecting(bundle.contract, step, choice, own)
    else:
        choice = permitted(bundle.manifest, step, choice)
    bears = not gathers and step.name not in parallel_steps(bundle.contract, deployment)
    if choice.queue is None or deployment.limit_parallel or bears:
        return choice
    return replace(choice, queue=replace(choice.queue, max_size=0, timeout_ms=0))


def step_samples(
    bundle: Bundle, step: StepSpec, deployment: Deployment, samples: Samples | None
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The `model_warmup` of a step that is to be warmed up, and the files that it names."""
    choice = step_choice(bundle, step, deployment)
    if not choice.warm_up or samples is None:
        return [], {}
    fields = batch_fields(bundle.contract, step, choice, backend(step, deployment))
    return warm_up(bundle.contract, step, fields, samples)


def step_config(
    bundle: Bundle,
    step: StepSpec,
    deployment: Deployment,
    names: Names | None = None,
    samples: Samples | None = None,
) -> str:
    """The config.pbtxt of one step."""
    contract = bundle.contract
    choice = step_choice(bundle, step, deployment)
    name = (names or plain_names(contract)).models[step.name]
    parameters = {"contract_id": contract.contract_id, "step": step.name}
    config: dict[str, Any] = {"name": name, "backend": backend(step, deployment)}
    config |= batch_fields(contract, step, choice, config["backend"])
    group: dict[str, Any] = {"count": choice.instances, "kind": KINDS[choice.kind]}
    if choice.gpus:
        group["gpus"] = list(choice.gpus)
    if config["backend"] == "python":
        parameters["contract"] = canonical(contract.to_json()).decode("ascii")
        parameters["threads"] = str(deployment.threads)
        if step.name == "decode" and deployment.limits != Limits():
            parameters["limits"] = json.dumps(asdict(deployment.limits))
        group["kind"] = KINDS["cpu"]
    elif config["backend"] == "tensorrt":
        plans = triton_fields(bundle.root, step.name)
        group["profile"] = plans.pop("profiles")
        config |= plans
    else:
        config["default_model_filename"] = "model.onnx"
        parameters["intra_op_thread_count"] = str(deployment.threads)
    config["instance_group"] = [group]
    if choice.response_cache:
        config["response_cache"] = {"enable": True}
    config["model_warmup"] = step_samples(bundle, step, deployment, samples)[0]
    if step.kind == "python":
        (order,) = wire({AFTER: column()}, [AFTER], batched=bool(config["max_batch_size"]))
        config["input"] = [*config["input"], {**order, "optional": True}]
    return config_text(config, parameters)


def constants_config(bundle: Bundle, names: Names) -> str:
    """The config.pbtxt of the model that stands for absent modalities."""
    contract = bundle.contract
    parameters = {"contract": canonical(contract.to_json()).decode("ascii")}
    made = sorted(constant_tensors(bundle))
    config = {
        "name": names.models[CONSTANTS],
        "backend": "python",
        "instance_group": [{"count": 1, "kind": KINDS["cpu"]}],
        "input": _countable(contract),
        "output": wire(contract.tensors, made),
    }
    return config_text(config, parameters | {"contract_id": contract.contract_id})


def _countable(contract: Contract) -> list[dict[str, Any]]:
    """What clips are counted by. Words alone are counted as such, where only hearing makes their
    lengths, so then either may be left out."""
    lengths, texts = (wire({name: column(kind)}, [name]) for kind, name in BATCH.items())
    if contract.hearing is None:
        return lengths
    return [{**tensor, "optional": True} for tensor in (*lengths, *texts)]


def constant_tensors(bundle: Bundle) -> set[str]:
    """All tensors that some cut may need a constant for."""
    return absent_tensors(bundle.contract, MODALITIES)


def _check(bundle: Bundle, deployment: Deployment) -> None:
    check_choices(deployment)
    steps = [step.name for step in bundle.contract.steps]
    if wrong := sorted(set(deployment.steps) - set(steps)):
        raise InvalidInputError(
            f"the deployment has choices for the step {wrong[0]!r}",
            f"any of {', '.join(steps)}",
            "correct the deployment",
        )
    for name, own in deployment.steps.items():
        if own.precision is not None and own.precision != (found := _precision(bundle, name)):
            raise InvalidInputError(
                f"{bundle.root} stores the step {name!r} in {found or 'no stated precision'}",
                own.precision,
                "export the bundle for this target, or drop the precision from the deployment",
            )
        on_gpu = own.kind == "gpu" or own.gpus
        if on_gpu and backend(bundle.contract.step(name), deployment) == "python":
            raise InvalidInputError(
                f"the step {name!r} is to run on a GPU, in Triton's Python backend",
                "the CPU: there its code and its graph run on nothing else",
                f"take kind and gpus out of steps.{name}, or give the step another flavour",
            )
    for name in sorted(deployment.steps) if not deployment.limit_parallel else ():
        queue = deployment.steps[name].queue
        limited = queue is not None and (queue.max_size or queue.timeout_ms)
        if limited and name in parallel_steps(bundle.contract, deployment):
            raise InvalidInputError(
                f"the queue of {name!r} is limited, and this step runs beside others",
                "no limit there: Triton 24.10 dies when such a queue turns a request away",
                "limit a proxy instead, or set limit_parallel = true for a Triton that is mended",
            )


def _precision(bundle: Bundle, step: str) -> str:
    """What the manifest says a step is stored in: `fp32`, `int8-qdq`; "" where it says nothing."""
    table = bundle.manifest.get("precision")
    stated = table.get(step, "") if isinstance(table, Mapping) else ""
    if isinstance(stated, Mapping):
        return str(stated.get("precision", ""))
    return str(stated).partition(";")[0]


def _check_folder(bundle: Bundle, out: Path, versioned: bool) -> None:
    """Refuses a folder whose content is not rendered: anything else stops Triton."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    mine = versioned and out.is_dir() and any(out.glob(MANIFEST_OF.format("*")))
    if not mine:
        raise InvalidInputError(
            f"{out} exists and is not an empty folder",
            "a new or empty one, or one that was rendered with versions before"
            if versioned
            else f"the bundle's own folder {bundle.root}, or a new or empty one",
            "choose another folder: anything else in a repository stops Triton",
        )


@contextlib.contextmanager
def _empty_if_it_fails(out: Path) -> Iterator[None]:
    """Leaves a folder that was new or empty so, where the disk is full, say: half a repository
    would be refused when the same is asked for again."""
    existed = out.exists()
    empty = not existed or not any(out.iterdir())
    try:
        yield
    except BaseException:
        for path in list(out.iterdir()) if empty and out.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed and out.is_dir():
            out.rmdir()
        raise


def _place_content(
    bundle: Bundle, out: Path, names: Names, deployment: Deployment, copy: bool
) -> None:
    """Links (or copies) manifest, signatures and the steps' files to where their models lie."""
    out.mkdir(parents=True, exist_ok=True)
    signed = [SIGNATURES] if (bundle.root / SIGNATURES).is_file() else []
    for name in (MANIFEST, *signed):
        stem, _, suffix = name.partition(".")
        _place(bundle.root / name, out / f"{stem}{names.suffix}.{suffix}", copy)
    for name in (*sorted(bundle.manifest["content"]), *_plans(bundle, deployment)):
        step, _, rest = name.partition("/")
        _place(bundle.root / name, out / names.models.get(step, step) / rest, copy)


def _plans(bundle: Bundle, deployment: Deployment) -> Iterable[str]:
    for step in bundle.contract.steps:
        if backend(step, deployment) == "tensorrt":
            for capability in plans_of(bundle.root, step.name):
                stem = f"{step.name}/1/model.sm_{capability.replace('.', '')}"
                yield from (f"{stem}.plan", f"{stem}.json")


def _place(source: Path, target: Path, copy: bool) -> None:
    """A link to the file, or a copy where links fail; whatever lay there is replaced at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(target) as temporary:
        try:
            if copy:
                raise OSError("asked for a copy")
            temporary.symlink_to(source.resolve())
        except OSError:
            shutil.copy2(source, temporary)


def _remove_stale(out: Path, files: Iterable[str], keep_models: bool) -> None:
    """Removes what an earlier rendering left and this one does not make: another flavour's
    model.py, and models that are no longer rendered."""
    made = set(files)
    for config in out.glob("*/config.pbtxt"):
        folder = config.parent
        if f"{folder.name}/config.pbtxt" in made:
            if f"{folder.name}/1/model.py" not in made:
                (folder / "1" / "model.py").unlink(missing_ok=True)
            for sample in folder.glob(f"{SAMPLES}/*"):
                if sample.relative_to(out).as_posix() not in made:
                    sample.unlink()
            with contextlib.suppress(OSError):  # samples are left in it, or there is none
                (folder / SAMPLES).rmdir()
        elif not keep_models and _only_rendered(folder):
            shutil.rmtree(folder)


def _only_rendered(folder: Path) -> bool:
    files = [path for path in folder.rglob("*") if path.is_file()]
    rendered = all(path.name in DEPLOYMENT_NAMES or path.suffix == ".pyc" for path in files)
    return rendered and (folder / "config.pbtxt").read_text("utf-8").startswith(HEAD)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which then takes its place or is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
