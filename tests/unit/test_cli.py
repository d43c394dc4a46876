"""The command line, as people, charts and scripts use it."""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from epp import configuration
from epp.cli import COMMANDS, WIDTH, cli
from epp.cli.flag import GROUPS
from epp.cli.run import settings_of
from epp.cli.run_flags import FLAGS
from epp.cli.serving import go_style
from epp.settings import Settings

GO_FLAGS = shlex.split("""
    grpc-port grpc-health-port metrics-port ha-enable-leader-election drain-timeout grpc-max-recv-msg-size
    grpc-max-send-msg-size pool-group pool-namespace pool-name endpoint-selector endpoint-target-ports
    disable-endpoint-subset-filter emit-endpoint-scores refresh-metrics-interval refresh-prometheus-metrics-interval
    metrics-staleness-threshold total-queued-requests-metric total-running-requests-metric
    kv-cache-usage-percentage-metric lora-info-metric cache-info-metric tracing health-checking enable-pprof cert-path
    enable-cert-reload secure-serving tls-min-version tls-cipher-suites metrics-endpoint-auth metrics-cert-dir
    metrics-client-ca-file enable-grpc-stream-metrics config-file config-text allow-experimental-plugins v zap-encoder
    zap-log-level zap-devel zap-stacktrace-level zap-time-encoding model-server-metrics-port model-server-metrics-path
    model-server-metrics-scheme model-server-metrics-https-insecure-skip-verify
""")

OUR_FLAGS = shlex.split(
    "resources kubeconfig body-based-routing picker-service decision-log decision-log-max-size max-loop-lag hang-timeout max-body-size client-ca-file client-allowed-names metrics-token-file endpoint envoy-eds-file transport host look-share default-body-mode seed log-format"
)


ENVIRONMENT = ("NAMESPACE", "POD_NAME", "HOME", "KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Settings]]:
    """What `epp run` would have run with; the exit status is the verbosity-free 7, to tell it from others."""
    seen: list[Settings] = []
    app = ModuleType("epp.app")

    def run(settings: Settings) -> int:
        seen.append(settings)
        return 7

    app.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "epp.app", app)
    monkeypatch.setattr("epp.app", app, raising=False)
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable, raising=False)
    yield seen


def epp(*args: str, **options: Any) -> Result:
    return CliRunner().invoke(cli, list(args), prog_name="epp", **options)


def settings(ran: list[Settings], *args: str) -> Settings:
    result = epp("run", *args)
    assert result.exit_code == 7, result.output
    return ran[-1]


# --- flags -----------------------------------------------------------------------------------------------------------


def test_the_exit_status_is_the_services(ran: list[Settings]) -> None:
    assert settings(ran) == Settings()


@pytest.mark.parametrize("name", GO_FLAGS + OUR_FLAGS)
def test_every_flag_is_known(name: str) -> None:
    assert f"--{name}" in {option for flag in FLAGS for option in flag.opts}


def test_every_flag_sets_a_field_or_says_that_it_does_not() -> None:
    for flag in FLAGS:
        assert (flag.field in (*Settings.__struct_fields__, "verbosity")) != bool(flag.inert), flag.flag


def test_every_setting_can_be_set() -> None:
    assert set(Settings.__struct_fields__) - {flag.field for flag in FLAGS} == {
        "pod_name",
        "service_host",
        "service_port",
        "home",
        "notices",
    }


CHARTS = {
    "llm-d-router gateway": """
        --pool-name my-release --pool-namespace models --pool-group inference.networking.k8s.io --zap-encoder json
        --config-file /config/default-plugins.yaml --ha-enable-leader-election --grpc-health-port 9103 --v=1
        --secure-serving=false --tracing=false --metrics-endpoint-auth=false
    """,
    "llm-d-router standalone": """
        --endpoint-selector app=vllm,tier=gpu --endpoint-target-ports 8000,8001 --zap-encoder json
        --config-file /config/payload-agnostic.yaml --grpc-health-port 9103 --health-checking=true --tracing=true
    """,
    "inference extension, Triton": """
        --pool-name my-release --pool-namespace models --pool-group inference.networking.k8s.io --zap-encoder json
        --config-file /config/default-plugins.yaml --v 1 --grpc-health-port 9103
        --total-queued-requests-metric "nv_trt_llm_request_metrics{request_type=waiting}"
        --kv-cache-usage-percentage-metric "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}"
        --lora-info-metric ""
    """,
    "inference extension 0.x": """
        -poolName my-release -poolNamespace models -v 3 -grpcPort 9002 -grpcHealthPort 9103 -metricsPort 9090
    """,
}


@pytest.mark.parametrize("chart", CHARTS)
def test_the_arguments_of_the_go_charts_parse(chart: str, ran: list[Settings]) -> None:
    got = settings(ran, *shlex.split(CHARTS[chart]))
    assert got.grpc_health_port == 9103


def test_what_the_charts_say_is_understood(ran: list[Settings]) -> None:
    gateway = settings(ran, *shlex.split(CHARTS["llm-d-router gateway"]))
    assert (gateway.pool_names, gateway.pool_namespace) == (("my-release",), "models")
    assert (gateway.secure_serving, gateway.log_encoder) == (False, "json")
    assert gateway.config_file == Path("/config/default-plugins.yaml")
    assert (gateway.pool_group, gateway.elects_leader) == ("inference.networking.k8s.io", True)
    assert (gateway.metrics_endpoint_auth, gateway.notices) == (False, ())
    standalone = settings(ran, *shlex.split(CHARTS["llm-d-router standalone"]))
    assert (standalone.endpoint_selector, standalone.endpoint_target_ports) == ("app=vllm,tier=gpu", (8000, 8001))
    triton = settings(ran, *shlex.split(CHARTS["inference extension, Triton"]))
    assert triton.queued_requests_spec == "nv_trt_llm_request_metrics{request_type=waiting}"
    assert (triton.lora_spec, triton.running_requests_spec) == ("", None)
    assert settings(ran, *shlex.split(CHARTS["inference extension 0.x"])).log_level == 15


@pytest.mark.parametrize(
    "args",
    [
        ["--grpc-port=1234"],
        ["--grpc-port", "1234"],
        ["-grpc-port", "1234"],
        ["-grpc-port=1234"],
        ["-grpcPort=1234"],
        ["--grpcPort", "1234"],
        ["--grpc-port=1", "--grpc-port=1234"],
    ],
)
def test_a_flag_in_every_spelling(args: list[str], ran: list[Settings]) -> None:
    assert settings(ran, *args).grpc_port == 1234


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--secure-serving"], True),
        (["--secure-serving=true"], True),
        (["--secure-serving=T"], True),
        (["--secure-serving", "1"], True),
        (["--secure-serving=false"], False),
        (["--secure-serving", "false"], False),
        (["--secure-serving=0"], False),
        (["-secureServing=F"], False),
        (["--secure-serving", "--grpc-port", "1"], True),
    ],
)
def test_switches(args: list[str], value: bool, ran: list[Settings]) -> None:
    assert settings(ran, *args).secure_serving is value


@pytest.mark.parametrize("args", [["-v", "4"], ["-v=4"], ["-v4"], ["--v", "4"], ["--v=4"]])
def test_verbosity(args: list[str], ran: list[Settings]) -> None:
    assert settings(ran, *args).log_level == logging.DEBUG


@pytest.mark.parametrize(
    ("args", "level"),
    [(["-v", "4", "--zap-log-level", "error"], 40), (["--zap-log-level=3"], 15), (["--zap-log-level=debug"], 10)],
)
def test_the_named_level_goes_first(args: list[str], level: int, ran: list[Settings]) -> None:
    assert settings(ran, *args).log_level == level


def test_durations_and_sizes(ran: list[Settings]) -> None:
    got = settings(
        ran, "--drain-timeout=1m30s", "--refresh-metrics-interval", "50ms", "--metrics-staleness-threshold=1.5s"
    )
    assert (got.drain_timeout_s, got.refresh_metrics_interval_s, got.metrics_staleness_threshold_s) == (90.0, 0.05, 1.5)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10MiB", 10 * 2**20),
        ("25MB", 25_000_000),
        ("4Mi", 4 * 2**20),
        ("1000", 1000),
        ("8KiB", 8192),
        ("8KB", 8000),
        ("", None),
    ],
)
def test_sizes(text: str, size: int | None, ran: list[Settings]) -> None:
    assert settings(ran, "--grpc-max-recv-msg-size", text).max_message_bytes == size


def test_endpoints_are_repeated_and_normal(ran: list[Settings]) -> None:
    got = settings(ran, "--endpoint", "10.0.0.1:8000", "--endpoint=[fd00::1]:8000", "-endpoint", "vllm-0.local:80")
    assert got.endpoints == ("10.0.0.1:8000", "[fd00::1]:8000", "vllm-0.local:80")


def test_lists_are_commas_or_repetition(ran: list[Settings]) -> None:
    got = settings(ran, "--tls-cipher-suites=A,B", "--tls-cipher-suites", "C")
    assert got.tls_cipher_suites == ("A", "B", "C")


@pytest.mark.parametrize(
    "flag",
    [
        "config-file",
        "cert-path",
        "metrics-cert-dir",
        "config-text",
        "pool-name",
        "pool-namespace",
        "host",
        "pool-group",
    ],
)
def test_an_empty_value_is_the_default(flag: str, ran: list[Settings]) -> None:
    assert settings(ran, f"--{flag}=") == Settings()


def test_port_0_of_the_metrics_pages_is_the_endpoints_own(ran: list[Settings]) -> None:
    assert settings(ran, "--model-server-metrics-port=0").model_server_metrics_port is None
    assert settings(ran, "--model-server-metrics-port=9400").model_server_metrics_port == 9400


def test_a_flag_without_effect_says_so_and_changes_nothing(ran: list[Settings]) -> None:
    got = settings(ran, "--tracing")
    notice = "--tracing: accepted, has no effect yet: none are made"
    assert got == Settings(notices=(notice,))


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.quiet is not None], ids=lambda flag: flag.flag)
def test_a_flag_without_effect_is_silent_where_none_was_asked_for(flag: Any, ran: list[Settings]) -> None:
    assert settings(ran, f"{flag.flag}={str(flag.quiet).lower()}") == Settings()


def test_the_environment_tells_where_the_api_server_is(ran: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    monkeypatch.setenv("KUBECONFIG", "/a/config:/b/config")
    monkeypatch.setenv("HOME", "/home/me")
    got = settings(ran)
    assert (got.service_host, got.service_port) == ("fd00::1", 6443)
    assert (got.kubeconfig, got.home) == (Path("/a/config"), Path("/home/me"))
    assert settings(ran, "--kubeconfig=/c").kubeconfig == Path("/c")


def test_ports_may_be_repeated_and_listed_and_count_once(ran: list[Settings]) -> None:
    got = settings(
        ran, "--endpoint-selector=a=b", "--endpoint-target-ports=8001,8000", "--endpoint-target-ports=8002,8001"
    )
    assert got.endpoint_target_ports == (8001, 8000, 8002)


def test_a_pool_without_a_name_is_called_after_our_deployment(
    ran: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAME", "my-picker-7f5d-x2")
    assert settings(ran).only_pool == "epp"
    assert settings(ran, "--endpoint-selector=a=b", "--endpoint-target-ports=8000").only_pool == "my-picker"


def test_the_environment_names_the_namespace(ran: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAMESPACE", "models")
    assert settings(ran).pool_namespace == "models"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--grpc-prot", "3"], "'--grpc-port'"),
        (["--poolname", "x"], "'--pool-name'"),
        (["--grpc-port", "x"], "'--grpc-port'"),
        (["--grpc-port", "65536"], "65535"),
        (["--drain-timeout", "30"], "expected a duration such as 200ms or 1m30s"),
        (["--tracing=maybe"], "'maybe' is neither true nor false"),
        (["--endpoint", "nonsense"], "no host:port"),
        (["--endpoint", "a:1", "--endpoint", "a:1"], "given twice"),
        (["--transport", "http3"], "grpc.aio"),
        (["--look-share", "2"], "0<=x<=1"),
        (["--grpc-max-recv-msg-size", "10XB"], "expected a quantity"),
        (["--model-server-metrics-port", "70000"], "no port"),
        (["--zap-log-level", "loud"], "none of panic"),
        (["--config-file=a", "--config-text=b"], "exclude each other"),
        (["--endpoint-selector=a=b"], "need each other"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=0"], "no port"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "at most 8"),
        (["--endpoint-selector=a=b", "--endpoint-target-ports=1", "--pool-name=x"], "excludes --pool-name"),
        (["--pool-group=apps"], "pools are in"),
        (["stray"], "stray"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(args: list[str], message: str, ran: list[Settings]) -> None:
    result = epp("run", *args)
    assert result.exit_code == 2
    assert message in result.output
    assert ran == []


@given(st.lists(st.text(max_size=12), max_size=6))
def test_what_is_no_flag_passes_unchanged(args: list[str]) -> None:
    plain = [arg for arg in args if not arg.startswith("-")]
    assert go_style(plain) == plain


@pytest.mark.parametrize("arg", ["-x", "--unknown", "-unknownFlag=1", "--", "-", "---grpc-port", "-1"])
def test_what_is_no_flag_of_ours_is_left_for_the_error_message(arg: str) -> None:
    assert go_style([arg]) == [arg]


def test_a_value_of_several_lines_stays_whole(ran: list[Settings]) -> None:
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
    assert settings(ran, f"-configText={text}").config_text == text


# --- help ------------------------------------------------------------------------------------------------------------


def test_the_help_groups_every_flag_within_100_columns() -> None:
    result = epp("run", "--help", terminal_width=WIDTH)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= WIDTH
    headings = [line.split(" (")[0].rstrip(":") for line in lines if line and not line.startswith((" ", "Usage"))]
    assert headings == list(GROUPS)
    for name in GO_FLAGS + OUR_FLAGS:
        assert re.search(rf"--{name}[ ,]", result.output)


def test_the_help_shows_the_real_defaults() -> None:
    defaults = settings_of({flag.name or "": () if flag.multiple else None for flag in FLAGS}, {})
    assert defaults == Settings()
    for flag in FLAGS:
        value = getattr(defaults, flag.field, None)
        if isinstance(value, bool):
            assert flag.shown == str(value).lower(), flag.flag
        elif isinstance(value, int | str) and flag.field not in ("log_level", "pool_namespace"):
            assert flag.shown == str(value), flag.flag
        elif isinstance(value, float) and flag.shown.endswith("s"):
            assert flag.shown == f"{value:g}s", flag.flag


def test_bare_and_short_help() -> None:
    assert "check" in epp().output
    assert epp("run", "-h").exit_code == 0


# --- other commands --------------------------------------------------------------------------------------------------

SOUND = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
"""

BROKEN = SOUND.replace("queue-scorer", "queue-scorrer")


def test_check_tells_sound_files(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SOUND)
    result = epp("check", str(file))
    assert (result.exit_code, result.stdout) == (0, f"{file}: ok\n")


def test_check_names_file_line_and_the_nearest_name_and_goes_on(tmp_path: Path) -> None:
    broken, sound = tmp_path / "broken.yaml", tmp_path / "sound.yaml"
    broken.write_text(BROKEN)
    sound.write_text(SOUND)
    result = epp("check", str(broken), str(tmp_path / "none.yaml"), str(sound))
    assert result.exit_code == 1
    assert f"{broken}:5: plugins[0].type: " in result.stderr
    assert "did you mean queue-scorer?" in result.stderr
    assert f"{tmp_path / 'none.yaml'}: cannot be read: No such file" in result.stderr
    assert result.stdout == f"{sound}: ok\n"


def test_check_reads_standard_input() -> None:
    assert epp("check", "-", input=SOUND).stdout == "standard input: ok\n"
    assert epp("check", "-", input=BROKEN).exit_code == 1


def test_check_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    result = epp("check", str(file))
    assert (result.exit_code, result.stderr) == (1, f"{file}: cannot be read: not UTF-8\n")


def test_check_without_a_file_is_wrong_usage() -> None:
    assert epp("check").exit_code == 2


def test_plugins_lists_every_type_with_parameters_and_defaults() -> None:
    result = epp("plugins")
    assert result.exit_code == 0
    for one in configuration.describe():
        assert f"  {one.type} " in result.output
    assert "maxNumOfEndpoints = 1" in result.output
    assert max(map(len, result.output.splitlines())) <= WIDTH


def test_plugins_describes_one() -> None:
    result = epp("plugins", "max-score-picker")
    assert result.output.startswith("max-score-picker (picker)\n")
    assert "maxNumOfEndpoints  whole number" in result.output
    assert "No parameters." in epp("plugins", "fcfs-ordering-policy").output


def test_plugins_as_json() -> None:
    everything = msgspec.json.decode(epp("plugins", "--json").stdout, type=list[configuration.Description])
    assert tuple(everything) == configuration.describe()
    (one,) = msgspec.json.decode(epp("plugins", "queue-scorer", "--json").stdout)
    assert one["type"] == "queue-scorer"


def test_plugins_of_an_unknown_type_names_the_nearest() -> None:
    result = epp("plugins", "queue-scorrer")
    assert result.exit_code == 2
    assert "did you mean queue-scorer?" in result.output


def test_the_schema_is_printed_whole() -> None:
    assert epp("schema").stdout == configuration.render_schema()


def test_the_version() -> None:
    result = epp("version")
    assert result.stdout.startswith("epp 0.")


def test_an_unknown_command_is_wrong_usage() -> None:
    assert epp("rnu").exit_code == 2


def test_every_command_is_in_the_module_of_its_name() -> None:
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None and command.name == name
    listed = [line.split(None, 1) for line in epp("--help").output.partition("Commands:\n")[2].splitlines()]
    assert [tuple(row) for row in listed] == sorted(COMMANDS.items())


def test_the_list_of_commands_imports_none_of_them() -> None:
    told = "import sys; from epp.cli import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout
    loaded = output.splitlines()[-1].split()
    assert "epp.cli" in loaded
    assert not {"numpy", "epp.configuration", "epp.settings", *(f"epp.cli.{name}" for name in COMMANDS)} & set(loaded)
