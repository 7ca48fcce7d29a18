"""`merkit-export tensorrt`: plans for the GPU of this machine, beside the bundle's graphs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.plans import HARDWARE
from merkit_export.commands.preflight import add_choices

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "tensorrt",
        help="build TensorRT plans for the GPU of this machine",
        description="Builds a plan for each encoder and for fusion, or takes it from the engine "
        "cache, and puts it beside the step's graph. Run it where the plans will be used.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a rendered repository that gets them"
    )
    add_choices(parser)
    parser.add_argument(
        "--version-compatible", action="store_true", help="let newer TensorRT run the plans, too"
    )
    parser.add_argument(
        "--hardware-compatibility",
        choices=HARDWARE,
        default=HARDWARE[0],
        metavar="GPUS",
        help=f"GPUs beside this one: {', '.join(HARDWARE)}",
    )
    parser.add_argument(
        "--weight-streaming", action="store_true", help="let weights stay in the host's memory"
    )
    parser.add_argument("--refit", action="store_true", help="let weights be exchanged later")
    parser.add_argument(
        "--strip-plan", action="store_true", help="leave weights out; not for Triton"
    )
    parser.add_argument("--tf32", action="store_true", help="round factors of float32 products")
    parser.add_argument(
        "--workspace", type=int, default=0, metavar="MIB", help="memory for one operator; 0: all"
    )
    parser.add_argument("--level", type=int, default=3, metavar="N", help="of search, 0 to 5")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="engine cache; see docs/tensorrt.md"
    )
    parser.set_defaults(command=_tensorrt)


def _tensorrt(args: argparse.Namespace) -> int:
    from merkit.bundle import open_bundle
    from merkit_export.tensorrt.options import BuildOptions
    from merkit_export.tensorrt.plans import build_plans
    from merkit_export.tensorrt.preflight import planned_steps
    from merkit_export.tensorrt.profiles import profiles_of

    options = BuildOptions(
        version_compatible=args.version_compatible,
        hardware=args.hardware_compatibility,
        weight_streaming=args.weight_streaming,
        refit=args.refit,
        strip_plan=args.strip_plan,
        tf32=args.tf32,
        workspace_mib=args.workspace,
        level=args.level,
    )
    bundle = open_bundle(args.bundle)
    profiles = profiles_of(bundle, args.deploy, args.max_batch, args.buckets)
    steps = args.step or planned_steps(bundle)
    built = build_plans(bundle, profiles, options, out=args.out, steps=steps, cache=args.cache)
    where = args.out or args.bundle
    print(f"{where}: {len(built)} plans; now run: merkit-export render {where} --flavour tensorrt")
    return 0
