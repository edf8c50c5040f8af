import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from audit_folder import write_audit_folder
from copies import copy_run, unspoilt
from explained_run import explain_tiny, train_tiny

from protofast.report import build_audit_report, build_report


@pytest.fixture(scope="session")
def explained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained, evaluated and explained by the real code."""
    run, data = train_tiny(tmp_path_factory.mktemp("report") / "run")
    explain_tiny(run, data, nearest=3, samples=6, top=2)
    build_report(run.path)
    return run.path


@pytest.fixture
def run(explained: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run that a test may spoil."""
    with unspoilt(explained):
        yield copy_run(explained, tmp_path / "run")


@pytest.fixture(scope="session")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit folder of two models with its report."""
    folder = write_audit_folder(tmp_path_factory.mktemp("audit") / "standard-vs-aligned")
    build_audit_report(folder)
    return folder


@pytest.fixture
def audit(audited: Path, tmp_path: Path) -> Path:
    """A copy of the audit folder that a test may spoil."""
    copy = tmp_path / "audit"
    shutil.copytree(audited, copy)
    return copy


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Headless Chromium, driven through its own chromedriver; nothing is downloaded.

    Skips where there is none, unless PROTOFAST_REQUIRE_BROWSER=1, which makes that a failure.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        missing = "chromium" if chromium is None else "chromedriver"
        if os.environ.get("PROTOFAST_REQUIRE_BROWSER") == "1":
            pytest.fail(f"PROTOFAST_REQUIRE_BROWSER=1, but {missing} is not installed")
        pytest.skip(f"needs {missing}")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driving = webdriver.Chrome(options=options, service=Service(driver))
    yield driving
    driving.quit()
