"""The recipe: every size, seed and schedule of a training run in one validated value.

The same classes build the profiles `tiny`, `base` and `paper`; only the recipe differs. Were
sizes scattered over the code, no run could be repeated from what its run folder records.

Each stage owns its table's dataclass; this module only knows where to find it (`TABLES`), so
that reading a recipe never needs a stage's heavy imports.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.settings import Natural, from_table

if TYPE_CHECKING:
    from merkit_training.data.config import DataConfig
    from merkit_training.encoders.audio.config import AudioConfig, AudioPretrainingConfig
    from merkit_training.encoders.joint.config import JointConfig, TowerPretrainingConfig
    from merkit_training.encoders.text.config import TextConfig, TextPretrainingConfig
    from merkit_training.encoders.vision.config import ContrastiveConfig, FaceEncoderConfig
    from merkit_training.encoders.vision.mae_config import MaeConfig
    from merkit_training.fusion.config import FusionConfig
    from merkit_training.speech.hearing.config import HearingConfig
    from merkit_training.speech.language_model.config import LanguageModelConfig
    from merkit_training.speech.noise.config import NoiseConfig, SelfTrainingConfig
    from merkit_training.speech.punctuation.config import PunctuatorConfig
    from merkit_training.speech.recognition.config import RecognizerConfig
    from merkit_training.speech.separation.config import SeparatorConfig
    from merkit_training.synth.config import SynthConfig

TABLES = {
    "synth": "merkit_training.synth.config:SynthConfig",
    "data": "merkit_training.data.config:DataConfig",
    "face_pretraining": "merkit_training.encoders.vision.mae_config:MaeConfig",
    "face_encoder": "merkit_training.encoders.vision.config:FaceEncoderConfig",
    "face_large_pretraining": "merkit_training.encoders.vision.config:ContrastiveConfig",
    "face_encoder_large": "merkit_training.encoders.vision.config:FaceEncoderConfig",
    "audio_pretraining": "merkit_training.encoders.audio.config:AudioPretrainingConfig",
    "audio_encoder": "merkit_training.encoders.audio.config:AudioConfig",
    "text_pretraining": "merkit_training.encoders.text.config:TextPretrainingConfig",
    "text_encoder": "merkit_training.encoders.text.config:TextConfig",
    "tower_pretraining": "merkit_training.encoders.joint.config:TowerPretrainingConfig",
    "joint_encoder": "merkit_training.encoders.joint.config:JointConfig",
    "noise": "merkit_training.speech.noise.config:NoiseConfig",
    "self_training": "merkit_training.speech.noise.config:SelfTrainingConfig",
    "recognizer": "merkit_training.speech.recognition.config:RecognizerConfig",
    "language_model": "merkit_training.speech.language_model.config:LanguageModelConfig",
    "punctuator": "merkit_training.speech.punctuation.config:PunctuatorConfig",
    "separator": "merkit_training.speech.separation.config:SeparatorConfig",
    "hearing": "merkit_training.speech.hearing.config:HearingConfig",
    "fusion": "merkit_training.fusion.config:FusionConfig",
}
"""Where each table's dataclass lives, as `module:class`."""


@dataclass(frozen=True)
class RunConfig:
    """What a run is called, the seed that all of its stages derive theirs from, and its grain."""

    name: str = "tiny"
    seed: Natural = 0
    weights: Literal["float16", "int8"] = "float16"  # what encoders are rounded to when saved
    hub: bool = False  # whether a `checkpoint` that is no folder may be fetched from a hub


@dataclass(frozen=True)
class Recipe:
    """One training run; the fields are the tables of the TOML file."""

    run: RunConfig
    preprocessing: Preprocessing
    synth: SynthConfig
    data: DataConfig
    face_pretraining: MaeConfig
    face_encoder: FaceEncoderConfig
    face_large_pretraining: ContrastiveConfig
    face_encoder_large: FaceEncoderConfig
    audio_pretraining: AudioPretrainingConfig
    audio_encoder: AudioConfig
    text_pretraining: TextPretrainingConfig
    text_encoder: TextConfig
    tower_pretraining: TowerPretrainingConfig
    joint_encoder: JointConfig
    noise: NoiseConfig
    self_training: SelfTrainingConfig
    recognizer: RecognizerConfig
    language_model: LanguageModelConfig
    punctuator: PunctuatorConfig
    separator: SeparatorConfig
    hearing: HearingConfig
    fusion: FusionConfig

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `recipe.json` of the run folder."""
        return asdict(self)

    def with_seed(self, seed: int) -> Recipe:
        """The same recipe under another seed."""
        return replace(self, run=replace(self.run, seed=seed))


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe from a TOML file; a missing table takes its dataclass's defaults.

    Raises:
        InvalidInputError: no file, no TOML, an unknown table or key, a wrong type or value.
    """
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"the recipe {path} cannot be read ({error.strerror})",
            "a TOML file",
            "give the path of one, such as training/recipes/tiny.toml",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no TOML ({error})", "a recipe in TOML") from None
    return recipe_from(tables, path.name)


def recipe_from(tables: Mapping[str, Any], where: str = "recipe.json") -> Recipe:
    """The recipe that `tables` (of TOML or of `Recipe.to_json`) describe; errors as above."""
    known = ("run", "preprocessing", *TABLES)
    if unknown := sorted(set(tables) - set(known)):
        raise InvalidInputError(
            f"{where} has the unknown table [{unknown[0]}]",
            f"tables among {', '.join(known)}",
            "correct or remove it",
        )
    return Recipe(
        **{
            name: from_table(table_class(name), tables.get(name, {}), f"{where} [{name}]")
            for name in known
        }
    )


def table_class(name: str) -> type[Any]:
    """The dataclass of a recipe's table.

    Raises:
        KeyError: no such table.
    """
    own = {"run": RunConfig, "preprocessing": Preprocessing}
    return own[name] if name in own else _resolve(TABLES[name])


def _resolve(location: str) -> type[Any]:
    module, _, name = location.partition(":")
    resolved: type[Any] = getattr(import_module(module), name)
    return resolved
