"""The pipeline on a Triton server, over gRPC.

tritonclient alone blocks without a way to cancel, never retries, leaks when asynchronous clients
are made again, and raises its own exceptions. This backend keeps one asynchronous client in one
background thread, gives each call one deadline, and speaks merkit's vocabulary (design 4).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import Tensors
from merkit.backends.breaker import CircuitBreaker
from merkit.backends.deadline import one_deadline, seconds_left
from merkit.backends.entries import (
    ModelNames,
    choose,
    names_of,
    served_contract,
    suffix_of,
    wanted,
)
from merkit.backends.grpc_errors import retried, translate
from merkit.backends.loop import Loop
from merkit.backends.outlive import Outliving, survives_cancelling
from merkit.backends.security import Security, speaks_tls
from merkit.backends.tracing import trace_headers
from merkit.errors import (
    CertificateError,
    ClipLimitError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MissingExtraError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from merkit.pipeline import DETAIL, OUTCOME

Array = NDArray[Any]

ENTRY = re.compile("merkit(-[0-9a-f]{8})?")
"""The name under which a server offers a bundle."""
LAZY = "merkit_lazy"
"""The model that takes either set and asks as few branches as it can."""

MAX_DEADLINE = 24 * 3600  # gRPC takes a deadline too large for its clock for one that has passed
RETRIES = 4  # attempts after the first, while the deadline allows
FIRST_BACKOFF = 0.05  # seconds; doubles, with full jitter
MAX_MESSAGE_BYTES = 2**31 - 1  # protobuf's own limit; both directions
OVERHEAD_BYTES = 1 << 16  # names and shapes beside the tensors
WIRE_DTYPES = {"uint8": "UINT8", "int64": "INT64", "float32": "FP32", "bool": "BOOL"}
CHANNEL = [  # without these a channel waits up to two minutes before it tries a server again
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),  # shorter than a call's retries, so that one meets it
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # calls go to every address behind the name in turn; by default one takes them all
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
]


class TritonBackend:
    """Executes the pipeline of whatever bundle a Triton server serves. Thread-safe.

    Args:
        url: `grpc://host:port`, or `grpcs://host:port` for TLS.
        deadline: seconds within which each call must be answered, retries included.
        contract_id: the contract to insist on; None accepts the server's.
        breaker: stops calls to a server that does not answer; default: after five in a row.
        security: certificates and a token; default: none, and public authorities for `grpcs`.
        lazy: have only the branches asked that can still change the label; see `backends.lazy`.
        bundle: the first digits (8 or more) of the id of the bundle to ask, where the server has
            several; None asks the one that it has under plain names.
        priority: of these requests in the server's queues, 1 the most urgent; 0 leaves it to it.

    Raises:
        InvalidInputError: a url of another scheme or without a port, or a deadline out of range.
        ServerUnavailableError: nothing answers at the address.
        ServerNotReadyError: a server answers, but it does not serve a bundle, or not yet.
        ContractMismatchError: it serves another contract, or none that can be read.
        CertificateError: one side does not accept the other's certificate.
        AccessDeniedError: the server wants a token, or another one.
        MissingExtraError: tritonclient is not installed.
    """

    def __init__(
        self,
        url: str,
        deadline: float = 10.0,
        contract_id: str | None = None,
        breaker: CircuitBreaker | None = None,
        security: Security | None = None,
        lazy: bool = False,
        bundle: str | None = None,
        priority: int = 0,
    ) -> None:
        self._host, self._port, self._encrypted = _address(url)
        self._address = urlsplit(url).netloc
        self._security = security or Security()
        self._security.check(self._host, self._encrypted)
        if not (isinstance(deadline, int | float) and 0 < deadline <= MAX_DEADLINE):
            raise InvalidInputError(
                f"a deadline of {deadline!r}",
                f"seconds, more than 0 and at most {MAX_DEADLINE}",
                "give the seconds to wait for each answer",
            )
        if not (isinstance(priority, int) and 0 <= priority < 2**32):
            raise InvalidInputError(
                f"a priority of {priority!r}", "0 or a level, 1 the most urgent", "correct it"
            )
        self._bundle, self._priority = bundle, priority
        self._names = ModelNames(suffix_of(bundle) if bundle is not None else "")
        self.url, self.deadline, self._lazy = url, deadline, lazy
        self._grpc = _grpc_client()
        self._breaker = breaker or CircuitBreaker()
        self._loop = Loop()
        self._client: Any = None
        self._outliving: Outliving | None = None
        try:
            self._credentials = self._security.credentials() if self._encrypted else None
            parameters = self._ask(self._connect)
            self._outliving = self._ask(self._patience)
            self.contract = served_contract(parameters, url, contract_id)
            self._names = names_of(parameters, self._names.suffix)
        except BaseException:
            self.close()
            raise
        self.identity: Mapping[str, str] = {
            "contract_id": self.contract.contract_id,
            "bundle_id": parameters.get("bundle_id", ""),
            "name": parameters.get("name", ""),
            **{k: parameters[k] for k in ("notice", "confident_from") if parameters.get(k)},
            "backend": "triton",
            "url": url,
        }

    def infer(self, tensors: Tensors, timings: dict[str, float] | None = None) -> dict[str, Array]:
        """See `Backend.infer`. `timings` gets `request`: milliseconds from call to answer.

        Raises:
            InvalidInputError: tensors that no entry point takes.
            ClipLimitError: more than a message can carry.
            DeadlineExceededError: no answer within the deadline; the call is cancelled, unless the
                server is too old to survive that.
            BackendError: the server is down, not ready, or failed; or what a step raised.
            ContractMismatchError: the server now serves another contract.
        """
        start = time.perf_counter()
        entry, sent = choose(self.contract, tensors)
        if self._lazy:
            entry, sent = LAZY, tensors
        model, inputs = self._names.entry(entry), self._inputs(sent)

        async def call(**options: Any) -> Any:
            return await self._client.infer(model, inputs, priority=self._priority, **options)

        given = {name: tensors[name] for name in OUTCOME if name in tensors}
        said = set(wanted(self.contract, tensors)) - set(DETAIL)
        outputs = given | self._outputs(self._guarded(call), said - set(given))
        if timings is not None:
            timings["request"] = (time.perf_counter() - start) * 1e3
        return outputs

    def batch_statistics(self) -> dict[str, tuple[int, int]]:
        """How many clips each step has computed since the server started, and in how many runs.

        Raises as `step_statistics`.
        """
        return {
            step: (model.inference_count, model.execution_count)
            for step, model in self._model_statistics()
        }

    def step_statistics(self) -> dict[str, tuple[int, float]]:
        """What the server has spent on each step since it started, whoever asked.

        Returns:
            By step name: executions (of batches), and milliseconds spent in the step in all,
            reading its inputs and writing its outputs included, waiting in queues not.

        Raises:
            BackendError: as `infer`.
        """
        return {
            step: (model.execution_count, _compute_milliseconds(model.inference_stats))
            for step, model in self._model_statistics()
        }

    def _model_statistics(self) -> list[tuple[str, Any]]:
        async def call(**options: Any) -> Any:
            return await self._client.get_inference_statistics(**options)

        names = {step.name for step in self.contract.steps}
        found = ((self._names.step(m.name), m) for m in self._guarded(call).model_stats)
        return [(step, model) for step, model in found if step in names]

    def close(self) -> None:
        """Closes the connection and ends the background thread. Safe to call twice."""
        self._loop.close(self._client, self._outliving)

    def _guarded(self, call: Any) -> Any:
        """Asks through the circuit breaker, and says so when the server's contract has changed;
        all within one deadline."""
        with one_deadline():
            return self._through_breaker(call)

    def _through_breaker(self, call: Any) -> Any:
        if (wait := self._breaker.remaining()) > 0:
            raise ServerUnavailableError(
                f"{self.url} did not answer several calls in a row",
                "a server that answers",
                f"check it; it will be tried again in {wait:.1f} s",
            )
        try:
            answer = self._ask(call)
        except (ServerUnavailableError, ServerNotReadyError, DeadlineExceededError):
            self._breaker.failed()
            raise
        except InvalidInputError:
            self._breaker.succeeded()
            self._check_unchanged()
            raise
        except Exception:  # it did answer; Ctrl-C, which says nothing of the server, passes by
            self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return answer

    def _check_unchanged(self) -> None:
        """Turns a refusal into the mismatch behind it, if the server was given another bundle."""
        served_contract(self._ask(self._parameters), self.url, self.contract.contract_id)

    def _ask(self, call: Any) -> Any:
        """Runs `call(headers=, client_timeout=)` in the background until it answers, fails, or
        time is up."""
        seconds = seconds_left(self.deadline)
        expires = time.monotonic() + seconds
        headers = self._security.headers() | trace_headers()
        try:
            return self._loop.run(self._attempts(call, headers, expires, seconds))
        except ServerUnavailableError as error:
            raise self._refusal(expires - time.monotonic()) or error from None

    def _refusal(self, seconds: float) -> CertificateError | None:
        """What TLS has to do with a server that seems not to be there, found in `seconds`."""
        if seconds <= 0:
            return None
        if self._encrypted:
            return self._security.refusal(self._host, self._port, self.url, seconds)
        if not speaks_tls(self._host, self._port, seconds):
            return None
        return CertificateError(
            f"{self.url} wants TLS", f"grpcs://{self._host}:{self._port}", "correct the url"
        )

    async def _attempts(
        self, call: Any, headers: dict[str, str], expires: float, seconds: float
    ) -> Any:
        from tritonclient.utils import InferenceServerException

        backoff = FIRST_BACKOFF
        for attempt in range(RETRIES + 1):
            try:
                left = max(expires - time.monotonic(), 1e-3)
                if self._outliving is not None:
                    return await self._outliving.ask(call, headers, left)
                return await call(headers=headers, client_timeout=left)
            except InferenceServerException as error:
                pause = random.uniform(0.5, 1.0) * backoff
                last = attempt == RETRIES or time.monotonic() + pause >= expires
                if last or not retried(error):
                    raise translate(error, self.url, max(seconds, 0.0)) from None
            await asyncio.sleep(pause)
            backoff *= 2
        raise AssertionError("the last attempt returns or raises")

    async def _connect(self, **options: Any) -> dict[str, str]:
        if self._client is None:  # made inside the loop that it will live in
            self._client = self._grpc.InferenceServerClient(
                self._address, creds=self._credentials, channel_args=CHANNEL
            )
        if await self._client.is_model_ready(self._names.entry("merkit"), **options):
            return await self._parameters(**options)
        asked, self._names = self._names.entry("merkit"), ModelNames()
        if self._bundle and await self._client.is_model_ready("merkit", **options):
            parameters = await self._parameters(**options)  # the only bundle, under plain names
            if parameters.get("bundle_id", "").startswith(self._bundle):
                return parameters
        raise await self._not_ready(asked, options)

    async def _patience(self, **options: Any) -> Outliving | None:
        from tritonclient.utils import InferenceServerException

        try:
            version = (await self._client.get_server_metadata(**options)).version
        except InferenceServerException:  # an operator may restrict it
            return None
        return None if survives_cancelling(version) else Outliving()

    async def _not_ready(self, model: str, options: Any) -> ServerNotReadyError:
        """The error for a bundle that is not served; it names those that are."""
        from tritonclient.utils import InferenceServerException

        action = "wait until it is ready, or start one: merkit serve BUNDLE"
        try:
            index = await self._client.get_model_repository_index(**options)
            served = [m.name for m in index.models if m.state == "READY"]
        except InferenceServerException:  # an operator may restrict it
            served = []
        if bundles := sorted(n[7:] or "(plain)" for n in served if ENTRY.fullmatch(n)):
            action = f"connect with bundle=, one of: {', '.join(bundles)}"
        return ServerNotReadyError(
            f"a Triton server answers at {self.url}, but its model {model!r} is not ready",
            "a server that has loaded a merkit bundle",
            action,
        )

    async def _parameters(self, **options: Any) -> dict[str, str]:
        answer = await self._client.get_model_config(self._names.entry("merkit"), **options)
        return {key: value.string_value for key, value in answer.config.parameters.items()}

    def _inputs(self, tensors: Tensors) -> list[Any]:
        if sum(value.nbytes for value in tensors.values()) > MAX_MESSAGE_BYTES - OVERHEAD_BYTES:
            raise ClipLimitError(
                "tensors of more than 2 GiB", "what one message can carry", "send a shorter clip"
            )
        inputs = []
        for name, value in tensors.items():
            dtype = self.contract.tensors[name].dtype
            made = self._grpc.InferInput(name, list(value.shape), WIRE_DTYPES.get(dtype, "BYTES"))
            try:
                inputs.append(made.set_data_from_numpy(value))
            except UnicodeEncodeError as error:
                raise InvalidInputError(
                    f"the tensor {name!r} holds text that is not Unicode ({error.reason})",
                    "text that UTF-8 can encode",
                    "remove lone surrogates",
                ) from None
        return inputs

    def _outputs(self, answer: Any, wanted: Collection[str]) -> dict[str, Array]:
        outputs = {}
        for tensor in answer.get_response().outputs:
            array = answer.as_numpy(tensor.name)
            if array.dtype == np.object_:
                text = [value.decode("utf-8") for value in array.flat]
                array = np.array(text, dtype=np.object_).reshape(array.shape)
            axes = len(self.contract.tensors[tensor.name].shape)
            outputs[tensor.name] = array.reshape(array.shape[:axes])  # the wire has no [batch]
        if missing := set(wanted) - set(outputs):
            raise InferenceError(
                f"the answer of {self.url} lacks {sorted(missing)}",
                f"the tensors {OUTCOME}",
                "render the server's repository again with this version of merkit",
            )
        return outputs


def _compute_milliseconds(spent: Any) -> float:
    phases = (spent.compute_input, spent.compute_infer, spent.compute_output)
    return sum(float(phase.ns) for phase in phases) / 1e6


def _address(url: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS is asked for, out of `grpc://host:port`."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("grpc", "grpcs") and parts.hostname and parts.port
        if good and not (parts.path.strip("/") or parts.query or parts.username):
            return str(parts.hostname), int(parts.port or 0), parts.scheme == "grpcs"
    except (ValueError, AttributeError, TypeError):
        pass
    raise InvalidInputError(
        f"the url {url!r}",
        "grpc://host:port or grpcs:// (HTTP is not supported: its calls cannot be cancelled)",
        "give the gRPC address that merkit serve prints",
    )


def _grpc_client() -> Any:
    try:
        import tritonclient.grpc.aio as client
    except ImportError:
        raise MissingExtraError.of("tritonclient", "triton") from None
    return client
