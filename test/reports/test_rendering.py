# SPDX-License-Identifier: Apache-2.0
"""
Reports as a browser shows them: no page is wider than its window, and none has an error.

Needs Chromium and Playwright (the extra `browser`); skipped where one is missing.
$REPORT_PICTURES names a directory for pictures of all pages, to look at.
"""

import os
from pathlib import Path
import shutil

import numpy as np
import pytest
from support.bundles import foreign_bundle, scene
from support.networks import fcn, write_bundle

from trt_segmentation import open_segmenter, reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.calibration import calibrate
from trt_segmentation.evaluation import benchmark
from trt_segmentation.evaluation.account import Fleet, Replayed, Row
from trt_segmentation.evaluation.frames import InProcess
from trt_segmentation.evaluation.progress import Counts
from trt_segmentation.evaluation.replay import replay
from trt_segmentation.evaluation.tally import Evaluation
from trt_segmentation.recordings import bags
from trt_segmentation.reports import benchmark as benchmark_report
from trt_segmentation.reports import evaluation as evaluation_report
from trt_segmentation.reports import fleet as fleet_report
from trt_segmentation.reports import replay as replay_report

playwright = pytest.importorskip('playwright.sync_api')
CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium here')

FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync']
LONG_TENSOR = 'the_network_s_backbone_and_in_it_the_tensor_of_a_long_name_as_'
LONG = 'an_extremely_long_name_without_any_place_to_break_it/' * 3 + 'picture.png'


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as library:
        chromium = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope='module')
def pages(tmp_path_factory):
    """Every report, of few frames, with names as long as people have them."""
    home = tmp_path_factory.mktemp('rendering')
    found = {}
    foreign_bundle(home)
    calibrate(home / 'foreign', (scene(i, (60, 110))[0] for i in range(12)), count=8, golden=2)
    network = fcn()
    for node in network.graph.node:
        for names in (node.input, node.output):
            names[:] = [LONG_TENSOR + name if name[-1].isdigit() or name.endswith('_conv')
                        else name for name in names]
    calibrate(write_bundle(home / 'long', network), (scene(i, (60, 110))[0] for i in range(12)),
              count=8, golden=2, tuned=True)
    found['calibration'] = (home / 'long' / 'calibration.html').read_text(encoding='utf-8')
    bundle = Bundle.open(home / 'foreign')
    provenance = {**reports.provenance(bundle), 'command': f'trt-segmentation evaluate {LONG}'}
    engines = ('fp32', 'int8', 'int8-vehicle', f'onnxruntime:{"int8"}')
    for kind, truth in (('evaluation', True), ('agreement', False)):
        evaluation = Evaluation(CITYSCAPES, engines, worst=2)
        for i in range(3):
            image, ids = scene(i, (60, 110))
            wrong = np.where(np.random.default_rng(i).random(ids.shape) < 0.1, 5, ids)
            masks = dict.fromkeys(engines, wrong.astype(np.uint8)) | {'fp32': ids}
            evaluation.add(LONG, image, ids if truth else None, masks)
        evaluation.notes.append(LONG)
        evaluation.taken = [LONG]
        found[kind] = evaluation_report.html(evaluation_report.Report(
            LONG, evaluation.figures(bundle.spec.acceptance), provenance,
            [f'limit {LONG}'], CITYSCAPES, evaluation.worst))
    segmenters = {name: open_segmenter(bundle, precision=name, store=home / 'store')
                  for name in ('fp32', 'int8')}
    result = benchmark.measure(segmenters, frames=12, warmup=1)
    found['benchmark'] = benchmark_report.html(LONG, result, provenance)
    found['comparison'] = benchmark_report.comparison_html(
        benchmark.compare(result, result), [
            {**result, 'provenance': {**provenance, 'bundle': name}} for name in ('a', LONG)],
        provenance)
    with bags.Writer(home / 'bag') as writer:
        for i in range(3):
            writer.write_image('/c/image', scene(i, (60, 110))[0], 'bgr8', i + 1, 'c')
    replay(InProcess(segmenters['fp32']), home / 'bag', record_golden=home / 'g.mcap')
    replayed = replay(InProcess(segmenters['int8']), home / 'bag', golden=home / 'g.mcap')
    found['replay'] = replay_report.html(LONG, replayed, provenance, [LONG], 0.995)
    for segmenter in segmenters.values():
        segmenter.close()
    counts, worst = Counts.of(replayed.comparison.confusion), replayed.comparison.worst
    fleet = Fleet(bundle.spec.labels)
    for i, frames in enumerate((3, 20, 100)):
        fleet.add(Replayed(Row(f'{i}/{LONG}', frames=frames, problems=1, shown=(LONG,),
                               compared=frames, below=i, agreement=1 - i / 10), counts, worst))
    fleet.add(Replayed(Row('unreadable', error=LONG), Counts([], []), []))
    found['fleet'] = fleet_report.html(fleet, provenance, [LONG])
    return {name: _written(home / f'{name}.html', text) for name, text in found.items()}


def _written(path, text):
    path.write_text(text, encoding='utf-8')
    return path


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 800, 500])
@pytest.mark.parametrize('name', ['evaluation', 'agreement', 'benchmark', 'calibration',
                                  'replay', 'fleet', 'comparison'])
def test_a_page_fits_its_window(browser, pages, name, width, scheme):
    with browser.new_context(viewport={'width': width, 'height': 900},
                             color_scheme=scheme) as context:
        page, errors = context.new_page(), []
        page.on('console', lambda message: errors.append(message.text))
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('request', lambda request: errors.append(request.url) if not
                request.url.startswith(('file:', 'data:')) else None)
        page.goto(pages[name].as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.evaluate(WIDER) == []
        assert page.evaluate(
            '[...document.images].every(image => image.complete && image.naturalWidth > 0)')
        # Text is never closer to its background than WCAG 2 wants of normal text, 4.5 to 1.
        assert page.evaluate(CONTRAST) >= 4.5
        assert errors == []
        if directory := os.environ.get('REPORT_PICTURES'):
            page.screenshot(path=str(Path(directory) / f'{name}-{width}-{scheme}.png'),
                            full_page=True)


@pytest.mark.parametrize('name', ['evaluation', 'benchmark', 'calibration', 'replay', 'fleet',
                                  'comparison'])
def test_the_answer_is_on_the_first_screen(browser, pages, name):
    with browser.new_context(viewport={'width': 500, 'height': 900}) as context:
        page = context.new_page()
        page.goto(pages[name].as_uri())
        assert page.locator('.answer').first.bounding_box()['y'] < 600


@pytest.mark.parametrize('width', [1280, 800])
def test_a_short_name_of_a_recording_is_in_one_line(browser, pages, width):
    with browser.new_context(viewport={'width': width, 'height': 900}) as context:
        page = context.new_page()
        page.goto(pages['fleet'].as_uri())
        for cell in page.locator('.wide td:first-child', has_text='unreadable').all():
            assert cell.bounding_box()['height'] < 40


def test_the_table_of_all_tensors_is_closed_and_says_how_many_there_are(browser, pages):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(pages['calibration'].as_uri())
        rows = page.locator('details tbody tr')
        count = rows.count()
        assert count > 10 and not any(row.is_visible() for row in rows.all())
        summary = page.locator('summary')
        assert summary.inner_text() == f'{count} tensors, worst first'
        summary.click()
        assert all(row.is_visible() for row in rows.all())


def test_a_command_can_be_copied_and_no_word_of_it_is_in_two_lines(browser, pages):
    with browser.new_context(viewport={'width': 500, 'height': 900}) as context:
        page = context.new_page()
        page.goto(pages['comparison'].as_uri())
        command = page.locator('code')
        assert command.inner_text() == f'trt-segmentation evaluate {LONG}'
        word = command.locator('.whole', has_text='trt-segmentation')
        assert word.bounding_box()['height'] < 30


def test_a_click_on_a_heading_sorts_the_recordings_by_it(browser, pages):
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(pages['fleet'].as_uri())

        def frames():
            return [row.split('\t')[1] for row in
                    page.locator('table.sortable tbody tr').all_inner_texts()]

        heading = page.locator('table.sortable th').nth(1)
        assert heading.inner_text() == 'frames'
        heading.click()
        assert frames() == ['3', '20', '100', '-']
        heading.click()
        assert frames() == ['-', '100', '20', '3']


# Tables, and what is in them, that are wider than their frames; they are told by their headings.
WIDER = """() => [...document.querySelectorAll('table')].filter(table => {
  const right = table.parentElement.getBoundingClientRect().right + 1;
  return [table, ...table.querySelectorAll('th, td')].some(
    each => each.getBoundingClientRect().right > right || each.scrollWidth > each.clientWidth + 1);
}).map(table => table.innerText.slice(0, 60))"""

CONTRAST = r"""() => {
  const parse = color => color.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const element of document.body.querySelectorAll('*')) {
    if (![...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())) continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(light);
    least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return least;
}"""
