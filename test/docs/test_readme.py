# SPDX-License-Identifier: Apache-2.0
"""
The README as a browser shows it: what a team decides by is on its first two screens.

Needs Chromium, Playwright and markdown-it-py (the extra `browser`); skipped where one is missing.
"""

from pathlib import Path
import shutil

import pytest

playwright = pytest.importorskip('playwright.sync_api')
markdown_it = pytest.importorskip('markdown_it')
CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')

ROOT = Path(__file__).parents[2]
WIDTH, SCREENS = 1012, 2 * 900
# The sizes and distances of GitHub's stylesheet.
STYLE = """
* { box-sizing: border-box }
body { margin: 0; font: 16px/1.5 "Noto Sans", Helvetica, Arial, sans-serif }
article { padding: 32px }
h1, h2 { margin: 24px 0 16px; padding-bottom: .3em; border-bottom: 1px solid; line-height: 1.25 }
h1 { font-size: 2em; margin-top: 0 }
p, pre, table { margin: 0 0 16px }
table { display: block; width: max-content; max-width: 100%; overflow: auto;
        border-collapse: collapse }
th, td { padding: 6px 13px; border: 1px solid }
code { font-size: 85%; padding: .2em .4em }
pre { padding: 16px; overflow: auto; font-size: 85%; line-height: 1.45 }
pre code { padding: 0; font-size: 100% }
img { max-width: 100% }
"""


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """Return the page, rendered."""
    renderer = markdown_it.MarkdownIt('commonmark', {'html': True}).enable('table')
    file = tmp_path_factory.mktemp('readme') / 'readme.html'
    file.write_text(f'<!doctype html><meta charset="utf-8"><base href="{ROOT.as_uri()}/">'
                    f'<style>{STYLE}</style><article>'
                    f'{renderer.render((ROOT / "README.md").read_text())}</article>')
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport={'width': WIDTH, 'height': 900})
        page.goto(file.as_uri(), wait_until='load')
        yield page
        browser.close()


@pytest.mark.parametrize('element', [
    'img[src$="architecture.svg"]', 'img[src$="demo.gif"]', 'h2:has-text("Where it runs")',
    'h2:has-text("Beside others")', 'td:has-text("years on real vehicles")',
    'strong:has-text("Networks that were tried")', 'p:has-text("ESPNet")',
    'p:has-text("Apache-2.0")', 'a[href="CHANGELOG.md"]', 'a[href=".github/ISSUE_TEMPLATE"]',
    'code:has-text("make demo")', 'code:has-text("pip install -c")'])
def test_what_a_team_decides_by_is_on_the_first_two_screens(page, element):
    box = page.locator(element).first.bounding_box()
    assert box['width'] > 20 and box['height'] > 10
    assert box['y'] + box['height'] <= SCREENS


def test_nothing_of_the_first_two_screens_is_cut_off(page):
    wide = page.evaluate("""screens => [...document.querySelectorAll('pre, table')]
        .filter(found => found.getBoundingClientRect().top < screens
                         && found.scrollWidth > found.clientWidth + 1)
        .map(found => found.innerText)""", SCREENS)
    assert not wide


def test_its_pictures_are_there_and_small(page):
    for picture in ('demo.gif', 'demo.png', 'architecture.svg'):
        assert (ROOT / 'docs/pictures' / picture).stat().st_size < 500_000
    assert page.evaluate('[...document.images].every(image => image.naturalWidth > 0)')
