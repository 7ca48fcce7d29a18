"""`merkit serve`: a bundle on Triton until Ctrl-C, protected as its options say."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any


def add(commands: Any, say: Callable[[str], None]) -> None:
    """Adds the command, which prints with `say`."""
    serve = commands.add_parser("serve", help="serve bundles with Triton until Ctrl-C")
    serve.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    for name in ("grpc", "http", "metrics"):
        serve.add_argument(f"--{name}-port", type=int, default=0, metavar="N", help="0: a free one")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    serve.add_argument("--threads", type=int, default=0, metavar="N", help="of each model; 0: all")
    serve.add_argument(
        "--deploy", type=Path, metavar="FILE", help="this host's choices (host.toml)"
    )
    serve.add_argument(
        "--warm-up", action="store_true", help="run samples before answering; starts later"
    )
    serve.add_argument(
        "--versioned", action="store_true", help="name models after their content, as several are"
    )
    serve.add_argument(
        "--model-control",
        choices=("none", "explicit"),
        default="none",
        help="explicit: let `merkit models` load and unload bundles meanwhile",
    )
    shut = serve.add_argument_group("protection")
    shut.add_argument("--tls-cert", type=Path, metavar="FILE", help="the server's certificate")
    shut.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")
    shut.add_argument(
        "--mutual-tls", type=Path, metavar="CA", help="admit clients with certificates of CA alone"
    )
    shut.add_argument("--token-file", type=Path, metavar="FILE", help="the token clients must send")
    shut.add_argument(
        "--admin-key-file", type=Path, metavar="FILE", help="opens administration; default: shut"
    )
    spans = serve.add_argument_group("tracing")
    spans.add_argument(
        "--trace-url", metavar="URL", help="a collector, as http://HOST:4318/v1/traces"
    )
    spans.add_argument(
        "--trace-rate", type=int, default=1000, metavar="N", help="one of N; default: %(default)s"
    )
    serve.set_defaults(run=lambda args, _parser: _serve(args, say))


def _serve(args: argparse.Namespace, say: Callable[[str], None]) -> int:
    from merkit.serving import ServeOptions, serve
    from merkit.serving.deployment import DEFAULT, read_deployment
    from merkit.serving.guard import Protection, Tracing

    deployment = read_deployment(args.deploy) if args.deploy else DEFAULT
    options = ServeOptions(
        host=args.host,
        grpc_port=args.grpc_port,
        http_port=args.http_port,
        metrics_port=args.metrics_port,
        threads=args.threads,
        versioned=args.versioned,
        explicit=args.model_control == "explicit",
        deployment=replace(deployment, warm_up=deployment.warm_up or args.warm_up),
        protection=Protection(
            certificate=args.tls_cert,
            key=args.tls_key,
            client_ca=args.mutual_tls,
            token_file=args.token_file,
            admin_key_file=args.admin_key_file,
        ),
        tracing=Tracing(args.trace_url, args.trace_rate) if args.trace_url else None,
    )
    return serve(args.bundles, options, say=say)
