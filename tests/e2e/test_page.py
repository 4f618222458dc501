"""The server's page in headless Chromium: what it shows of an answer, and that nothing of it runs but its own script."""

import shutil

import pytest

from tests.e2e.test_serve import Running

selenium = pytest.importorskip("selenium.webdriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1240,900")
EVIL = "<img src=x onerror=document.title='evil'>"


@pytest.fixture(scope="module")
def browser():
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("there is no chromium with its chromedriver: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(runs, browser):
    """The page of a decoder and, beside it, an encoder."""
    running = Running(runs / "decoder.causal", "--length=64", f"--compare={runs / 'encoder.masked'}")
    try:
        browser.get(running.url)
        found = Page(browser)
        found.wait(lambda: found.one("body").get_attribute("data-ready"))
        yield found
    finally:
        running.stop()


class Page:
    def __init__(self, browser):
        self.browser = browser

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        return self.browser.find_element("css selector", selector)

    def titles(self):
        """What the cells of the attention say."""
        return self.browser.execute_script("return [...document.querySelectorAll('#attention td')].map(cell => cell.title)")

    def wait(self, true):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, 300).until(lambda _: true())

    def fill_in(self, selector, text):
        self.one(selector).clear()
        self.one(selector).send_keys(text)

    def choose(self, selector, text):
        from selenium.webdriver.support.ui import Select

        Select(self.one(selector)).select_by_visible_text(text)


def test_an_answer_shows_its_probabilities(page):
    page.choose("#other", "none")
    page.fill_in("#prompt", f"abc {EVIL}")
    page.fill_in("#tokens", "12")
    page.one("#go").click()
    page.wait(lambda: page.one("#go").is_enabled() and page.one("#answers .note").text)
    answer = page.one("#answers .answer")
    assert answer.text.startswith(f"abc {EVIL}") and page.browser.title == "lm"  # a text is a text
    assert "tokens in" in page.one("#answers .note").text
    tokens = page.all("#answers .token")
    assert tokens
    page.browser.execute_script(
        "document.querySelector('#answers .token[data-p]')?.dispatchEvent(new MouseEvent('mouseenter', {bubbles: true}))"
    )
    if page.all("#answers .token[data-p]"):  # a part of a character has no text of its own to point at
        assert "%" in page.one("#tip").text


def test_the_marks_of_a_mask_are_filled(page):
    page.choose("#model", "encoder.masked")
    page.one("[data-tab=fill]").click()
    page.fill_in("#masked", "abc [MASK] de")
    page.one("#dofill").click()
    page.wait(lambda: page.all("#fills .bar"))
    shares = [float(bar.text.split()[-1].rstrip("%")) for bar in page.all("#fills .bar")]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100
    assert "[MASK]" not in page.one("#fills .answer").text


def test_a_layer_and_a_head_are_looked_at(page):
    page.choose("#model", "tiny")
    page.one("[data-tab=look]").click()
    page.fill_in("#looked", "abc de")
    page.one("#dolook").click()
    page.wait(lambda: page.one("#looks").is_displayed())
    rows = page.all("#attention tbody tr")
    assert len(rows) == len(page.all("#attention thead th")) - 1 and len(page.all("#lens tbody tr")) == 2
    seen = [page.titles()]
    for select, value in (("#head", "1"), ("#layer", "1")):
        page.choose(select, value)
        page.wait(lambda: page.titles() not in seen)
        seen.append(page.titles())
    assert page.one("#wrong").text == ""


def test_nothing_runs_but_the_pages_own_script(page):
    policy = page.browser.execute_async_script("fetch('/').then(a => arguments[0](a.headers.get('Content-Security-Policy')))")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy and "http" not in policy
    page.browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"evil\"'; document.body.append(s)"
    )
    assert page.browser.title == "lm"
    errors = [line["message"] for line in page.browser.get_log("browser") if line["level"] == "SEVERE"]
    assert errors and all("Content Security Policy" in line for line in errors), errors
