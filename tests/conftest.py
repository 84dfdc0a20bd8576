"""What tests of several rooms are given."""

import os
import shutil

import pytest


@pytest.fixture
def browser(driver):
    """A headless Chromium as wide as at the start, whatever an earlier test had made of it."""
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.set_window_size(1100, 900)
    return driver


@pytest.fixture(scope="session")
def driver():
    """A headless Chromium, or a skip with the reason; where MTP_BROWSER=required, a failure."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        assert os.environ.get("MTP_BROWSER") != "required", "chromium and chromedriver are not here, and this run requires them"
        pytest.skip("chromium and chromedriver are not here (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(word)
    options.binary_location = shutil.which("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield found
    found.quit()
