"""Folders and files: what stands in a repository, and what is missing from it.

A server stops over a folder that is no model, and a model without its file fails after its
neighbours have loaded for minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import CONFIG, ENSEMBLE, Model, Repository

VERSIONS = "Triton user guide, Model Repository, Model Versions"

NO_MODELS = rule(
    "no-models",
    "warning",
    "the repository holds no model",
    "server 24.10 starts and serves nothing",
)
STRAY_FOLDER = rule(
    "stray-folder",
    "error",
    "a folder in the root, even a hidden one, that is no model",
    "server 24.10 stops at it",
    "failed to poll from model repository",
)
NO_CONFIG = rule(
    "no-config",
    "warning",
    "a model without config.pbtxt: the server guesses backend, tensors and batching",
    "Triton user guide, Model Configuration, Auto-Generated Model Configuration",
)
NO_CONFIG_STRICT = rule(
    "no-config-strict",
    "error",
    "a model without config.pbtxt in a server that is told not to complete configs",
    "Triton user guide, Model Configuration, Auto-Generated Model Configuration",
    "config.pbtxt",
)
SYNTAX = rule(
    "config-syntax",
    "error",
    "a config.pbtxt that cannot be parsed, or has a field or value that does not exist",
    "server 24.10 refuses it",
    "failed to read text proto",
)
NEWER_FIELD = rule(
    "field-newer",
    "error",
    "a field that the server's version does not know",
    "the schema inside server 24.10",
    "failed to read text proto",
)
DOUBLE_KEY = rule(
    "double-key",
    "warning",
    "a key that a map holds twice: one of the two is silently dropped",
    "protobuf language guide, Maps; server 24.10 loads it",
)
NAME = rule(
    "name-folder",
    "error",
    "a name in the config that is not the folder's",
    "core/src/model_repository_manager",
    "directory name must equal model name",
)
NO_VERSION = rule(
    "no-version",
    "error",
    "no version folder that the version policy picks; ensembles need one, too",
    VERSIONS,
    "at least one version must be available",
)
VERSION_MISSING = rule(
    "version-missing",
    "warning",
    "a version that the policy names and that is not there: it is left out with a line in the log",
    VERSIONS,
)
VERSION_NAME = rule(
    "version-name",
    "warning",
    "a version folder whose name is no whole number, or begins with 0: it is ignored",
    VERSIONS,
)
NO_FILE = rule(
    "no-model-file",
    "error",
    "a version folder without the file that the backend loads; without its model.py a Python model "
    "neither loads nor fails: the call to load it never returns",
    "Triton user guide, Model Repository, Model Files",
    "model.py",
)
LABELS = rule(
    "label-file",
    "error",
    "a label_filename that is not in the model's folder",
    "core/src/label_provider.cc",
    "failed to open text file for read",
)
POINTER = rule(
    "lfs-pointer",
    "error",
    "a Git LFS pointer in place of a model's file",
    "Git LFS specification, The Pointer",
)
LINKS = rule(
    "links-outside",
    "advice",
    "files that are links out of the repository: in a container they lead nowhere unless what they "
    "lead to is mounted at the same place",
    "Docker documentation, Bind mounts",
)
POINTER_START, POINTER_BYTES = b"version https://git-lfs", 1024
IGNORED_FOLDERS = ("warmup", "initial_state", "configs")


def check(repository: Repository, options: Options, _skip: Skip) -> Iterator[Finding]:
    """Folders, configs, versions and files of every model."""
    if not repository.models:
        yield NO_MODELS.at("", "", f"{repository.root} holds no folder", "give the models' parent")
    for model in repository.models.values():
        if model.text is None and not model.backend:
            yield STRAY_FOLDER.at(
                model.name,
                "",
                f"the folder holds neither {CONFIG} nor a version of a model",
                "move it out of the repository; plain files may stay",
            )
            continue
        yield from _config(model, options)
        if model.config is not None:
            yield from _versions(model)
            yield from _pointers(model)
            yield from _labels(model)
    yield from _links(repository)


def _config(model: Model, options: Options) -> Iterator[Finding]:
    if model.text is None:
        chosen = NO_CONFIG if options.completes_configs else NO_CONFIG_STRICT
        yield chosen.at(model.name, CONFIG, "there is none, so Triton has to guess", "write one")
    if model.config is None:
        yield SYNTAX.at(model.name, CONFIG, model.problem, "correct that line")
        return
    if options.server_version is not None and options.server_version <= (24, 10):
        for field in model.newer:
            found = f"server {'.'.join(map(str, options.server_version))} does not know it"
            yield NEWER_FIELD.at(model.name, field, found, "remove it, or use a newer server")
    for double in model.doubles:
        place, _, key = double.partition(": ")
        yield DOUBLE_KEY.at(model.name, place, f"the key {key!r} is there twice", "keep one")
    if model.config.name not in ("", model.name):
        yield NAME.at(
            model.name, "name", f"it is {model.config.name!r}", f"write {model.name!r}, or rename"
        )


def _versions(model: Model) -> Iterator[Finding]:
    for name in model.folders:
        numeric = name.isdigit()
        looks = numeric or name.lower().lstrip("v").isdigit()
        if looks and not (numeric and not name.startswith("0")) and name not in IGNORED_FOLDERS:
            yield VERSION_NAME.at(
                model.name, name, "it is no version number", f"call it {name.lower().lstrip('v0')}"
            )
    if not model.served:
        there = f"; there are {list(model.versions)}" if model.versions else ""
        action = "make an empty folder 1 with a .gitkeep" if model.is_ensemble else "add folder 1"
        yield NO_VERSION.at(model.name, "", f"no version folder is served{there}", action)
    elif model.config.version_policy.HasField("specific"):
        for version in model.config.version_policy.specific.versions:
            if version not in model.versions:
                found = f"version {version} is asked for and not there"
                yield VERSION_MISSING.at(model.name, "version_policy", found, "add or drop it")
    wanted = model.model_files()
    for version in model.served if wanted else ():
        folder = model.path / str(version)
        if not any((folder / name).exists() for name in wanted):
            yield NO_FILE.at(
                model.name,
                f"{version}",
                f"it holds no {' or '.join(dict.fromkeys(wanted))}",
                "put the file there, or name the one that is in default_model_filename",
            )


def _pointers(model: Model) -> Iterator[Finding]:
    for version in model.served:
        for path in sorted((model.path / str(version)).iterdir()):
            if path.is_file() and path.stat().st_size < POINTER_BYTES:
                with path.open("rb") as file:
                    if file.read(len(POINTER_START)) == POINTER_START:
                        place, found = f"{version}/{path.name}", "it is a pointer of Git LFS"
                        yield POINTER.at(model.name, place, found, "run: git lfs pull")


def _links(repository: Repository) -> Iterator[Finding]:
    root = repository.root.resolve()
    outside = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)
    ]
    if outside:
        found = f"{len(outside)} files are links out of it, {outside[0].relative_to(root)} for one"
        action = "for a container, copy instead (merkit-export render --copy)"
        yield LINKS.at("", "files", found, action)


def _labels(model: Model) -> Iterator[Finding]:
    if model.config.platform == ENSEMBLE:
        return
    for output in model.config.output:
        if output.label_filename and not (model.path / output.label_filename).is_file():
            yield LABELS.at(
                model.name,
                f"output {output.name}",
                f"label_filename {output.label_filename!r} is not there",
                "put the file beside config.pbtxt",
            )
