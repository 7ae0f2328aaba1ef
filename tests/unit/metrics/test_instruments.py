from datetime import UTC, datetime, timedelta

import pytest

from bridge.metrics.compatibility import CITADEL_SIGN_ERRORS
from bridge.metrics.expiry import CertificateExpiry
from bridge.metrics.instruments import SHED_REASONS, STEPS, Metrics

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def expiry(tier: str, days: int, serial: str = "0a") -> CertificateExpiry:
    return CertificateExpiry(
        issuing_ca="" if tier in {"anchor", "serving"} else "seoul-1",
        tier=tier,
        subject=f"CN={tier}",
        serial=serial,
        not_before=NOW - timedelta(days=days),
        not_after=NOW + timedelta(days=days),
    )


def of_two_anchors_and_a_chain() -> Metrics:
    metrics = Metrics(now=lambda: NOW)
    metrics.expiries.replace("anchors", [expiry("anchor", 90), expiry("anchor", 80)])
    metrics.expiries.replace(
        "seoul-1", [expiry("issuing", 40), expiry("intermediate", 30)]
    )
    return metrics


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def text(metrics: Metrics) -> str:
    return metrics.render()[0].decode()


@pytest.mark.parametrize(
    "name",
    [
        "csr_count",
        "authentication_failure_count",
        "csr_parsing_err_count",
        "id_extraction_err_count",
        "success_cert_issuance_count",
    ],
)
def test_a_counter_of_istio_has_its_exact_name(name: str) -> None:
    metrics = Metrics()
    getattr(metrics.citadel, name).inc()
    lines = text(metrics).splitlines()
    assert f"citadel_server_{name} 1.0" in lines
    assert f"# TYPE citadel_server_{name} counter" in lines


def test_istios_sign_errors_are_shown_from_the_start() -> None:
    metrics = Metrics()
    metrics.citadel.csr_sign_err_count["CA_NOT_READY"].inc()
    shown = {
        error: sample(metrics, "citadel_server_csr_sign_err_count", error=error)
        for error in CITADEL_SIGN_ERRORS
    }
    assert shown == dict.fromkeys(CITADEL_SIGN_ERRORS, 0.0) | {"CA_NOT_READY": 1.0}


def test_istios_names_get_no_suffix_and_nothing_has_a_creation_time() -> None:
    metrics = Metrics()
    metrics.expiries.replace("x", [expiry("anchor", 9), expiry("issuing", 5)])
    names = {line.split("{")[0].split(" ")[0] for line in text(metrics).splitlines()}
    assert not [name for name in names if name.endswith("_created")]
    of_istio = [name for name in names if name.startswith("citadel_")]
    assert of_istio
    assert not [name for name in of_istio if name.endswith("_total")]


def test_istios_expiries_are_the_earliest_of_their_kind() -> None:
    metrics = of_two_anchors_and_a_chain()
    day = timedelta(days=1).total_seconds()
    assert sample(metrics, "citadel_server_root_cert_expiry_seconds") == 80 * day
    assert sample(metrics, "citadel_server_cert_chain_expiry_seconds") == 30 * day
    timestamp = (NOW + timedelta(days=80)).timestamp()
    assert sample(metrics, "citadel_server_root_cert_expiry_timestamp") == timestamp


def test_linkerds_name_of_the_issuers_end_has_one_beside_it_for_the_anchor() -> None:
    metrics = of_two_anchors_and_a_chain()
    day = timedelta(days=1).total_seconds()
    assert sample(metrics, "issuer_cert_ttl_seconds") == 40 * day
    assert sample(metrics, "anchor_cert_ttl_seconds") == 80 * day


def test_no_certificate_is_not_an_expiry_at_zero() -> None:
    metrics = Metrics()
    assert sample(metrics, "citadel_server_root_cert_expiry_timestamp") is None


def test_a_replaced_certificate_is_shown_no_longer() -> None:
    metrics = Metrics()
    metrics.expiries.replace("seoul-1", [expiry("issuing", 1, "01")])
    metrics.expiries.replace("anchors", [expiry("anchor", 9, "02")])
    metrics.expiries.replace("seoul-1", [expiry("issuing", 8, "03")])
    serials = {
        line.split('serial="')[1][:2]
        for line in text(metrics).splitlines()
        if line.startswith("meshca_certificate_expiry_timestamp_seconds{")
    }
    assert serials == {"02", "03"}


def test_steps_and_shed_calls_have_their_labels() -> None:
    metrics = Metrics()
    for step in STEPS:
        metrics.steps[step].observe(0.001)
        assert sample(metrics, "meshca_step_seconds_count", step=step) == 1
    for reason in SHED_REASONS:
        metrics.shed[reason].inc()
        assert sample(metrics, "meshca_shed_total", reason=reason) == 1


def test_calls_and_backends_are_counted_by_their_labels() -> None:
    metrics = Metrics("1.2.3")
    metrics.requests("istio", "OK").inc()
    metrics.requests("istio", "OK").inc()
    metrics.backend("seoul-1").called("backend.timeout")
    metrics.backend("seoul-1").seconds.observe(0.2)
    metrics.misissued("seoul-1")
    for name, labels, value in [
        ("meshca_requests_total", {"front": "istio", "code": "OK"}, 2),
        (
            "meshca_backend_calls_total",
            {"issuing_ca": "seoul-1", "result": "backend.timeout"},
            1,
        ),
        ("meshca_backend_seconds_sum", {"issuing_ca": "seoul-1"}, 0.2),
        ("meshca_misissued_total", {"issuing_ca": "seoul-1"}, 0),
    ]:
        assert sample(metrics, name, **labels) == value
    assert 'version="1.2.3"' in text(metrics)


def test_the_lag_of_the_archive_is_asked_for_at_each_scrape() -> None:
    metrics = Metrics()
    lag = iter([3.0, 5.0])
    metrics.watch_archive(lambda: next(lag), lambda: 1.5)
    assert sample(metrics, "meshca_archive_lag_seconds") == 1.5
    assert sample(metrics, "meshca_archive_lag_rows") == 5.0


def test_two_values_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.ttl_clamped.inc()
    assert sample(other, "meshca_ttl_clamped_total") == 0


def test_a_plugin_shows_values_and_counts_events_of_its_issuing_ca() -> None:
    metrics = Metrics()
    plugin, other = metrics.plugin("seoul-1"), metrics.plugin("seoul-2")
    plugin.set("sessions", 3)
    plugin.set("sessions", 4)
    other.set("sessions", 1)
    plugin.count("logins")
    plugin.count("logins", 2)
    lines = text(metrics).splitlines()
    assert 'meshca_plugin_value{issuing_ca="seoul-1",name="sessions"} 4.0' in lines
    name = 'meshca_plugin_events_total{issuing_ca="seoul-1",name="logins"}'
    assert f"{name} 3.0" in lines
