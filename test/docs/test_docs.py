# SPDX-License-Identifier: Apache-2.0
"""The documentation against the tree: what it names is there, and what is there it names."""

from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
import re
import shutil
import subprocess

import pytest

from trt_segmentation.bundles import spec

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), ROOT / 'training/README.md'])


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    for target in re.findall(r'\]\(([^)#\s]+)(?:#[^)]*)?\)', text):
        if not re.match(r'[a-z]+:', target):
            assert (page.parent / target).exists(), f'{page.name} links to {target}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_one(page):
    for target, anchor in re.findall(r'\]\(([^)#:\s]*)#([^)]+)\)', page.read_text()):
        linked = (page.parent / target if target else page).read_text()
        text = re.sub(r'```.*?```', '', linked, flags=re.S)
        headings = re.findall(r'^#+ (.+)$', text, flags=re.M)
        slugs = {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}
        assert anchor in slugs, f'{page.name} links to {target}#{anchor}'


def test_what_architecture_names_is_in_the_tree():
    text = (ROOT / 'docs/architecture.md').read_text()
    named = re.findall(r'`([a-z_]+(?:/[a-z_.]*)+)`', text)
    assert len(named) > 40
    for name in named:
        assert (ROOT / name).exists() or (ROOT / 'trt_segmentation' / name).exists(), name


def test_every_room_is_in_architecture():
    text = (ROOT / 'docs/architecture.md').read_text()
    for room in (ROOT / 'trt_segmentation').iterdir():
        if (room / '__init__.py').exists():
            assert f'`{room.name}/`' in text, room.name


def test_every_key_of_model_yaml_is_on_its_page_with_its_default():
    text = (ROOT / 'docs/networks.md').read_text().split('## model.yaml')[1].split('\n## ')[0]
    rows = {key: default.strip() for keys, default in re.findall(r'^\| (`[^|]+) \|([^|]*)\|', text,
                                                                 flags=re.M)
            for key, default in zip_longest(re.findall('`(.+?)`', keys), default.split(';'),
                                            fillvalue='')}
    sections = {'input': spec.InputSpec, 'output': spec.OutputSpec,
                'calibration': spec.CalibrationSpec, 'acceptance': spec.AcceptanceSpec}
    assert set(rows) == {'version', 'model', 'labels', *(
        f'{name}.{field.name}' for name, section in sections.items() for field in fields(section))}
    for name, section in sections.items():
        for field in fields(section):
            said = rows[f'{name}.{field.name}'].strip('`')
            if isinstance(field.default, tuple) and field.default:
                assert [float(value) for value in said.split(',')] == list(field.default)
            elif isinstance(field.default, float):
                assert float(said) == field.default
            elif isinstance(field.default, str):
                assert said == field.default


def test_readme_lists_every_command():
    text = (ROOT / 'README.md').read_text()
    listed = set(re.findall(r'^\| `([a-z]+)[ `]', text, flags=re.M))
    assert listed == {path.stem for path in (ROOT / 'trt_segmentation/cli').glob('[a-z]*.py')}


def test_readme_s_first_commands_can_be_typed_after_each_other():
    """`make` puts nothing on the PATH."""
    first, second, *_ = re.findall(r'^```bash\n(.*?)^```', (ROOT / 'README.md').read_text(),
                                   flags=re.S | re.M)
    assert 'make demo' in first and 'trt-segmentation' not in first
    assert second.startswith('. .venv/bin/activate') and '\ntrt-segmentation init ' in second


def test_every_page_is_in_the_site_s_navigation():
    listed = re.findall(r'^  - ([a-z-]+\.md)$', (ROOT / 'mkdocs.yml').read_text(), flags=re.M)
    assert sorted(listed) == sorted(page.name for page in ROOT.glob('docs/*.md'))


def test_readme_lists_every_page_once():
    section = (ROOT / 'README.md').read_text().partition('## Documentation')[2]
    listed = re.findall(r'\]\(docs/([a-z-]+\.md)\)', section)
    assert sorted([*listed, 'index.md']) == sorted(page.name for page in ROOT.glob('docs/*.md'))


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_the_names_of_the_python_page_are_those_that_the_site_describes():
    text = (ROOT / 'docs/api.md').read_text()
    tabled, described = (
        [resolve_name(name) for name in re.findall(pattern, text, flags=re.M)]
        for pattern in (r'^\| `(trt_segmentation\.[\w.]+)`', r'^::: ([\w.]+)'))
    assert len(tabled) > 5 and tabled == described


def test_make_help_has_a_line_for_each_target():
    # As a make in a make it would name its directory.
    said = subprocess.run(['make', '--no-print-directory', 'help'], cwd=ROOT, capture_output=True,
                          text=True, check=True)
    listed = [line.split()[1] for line in said.stdout.splitlines()]
    phony = re.search(r'^\.PHONY:((?:.*\\\n)*.*)', (ROOT / 'Makefile').read_text(), flags=re.M)
    assert sorted(listed) == sorted(phony[1].replace('\\', '').split())


def test_every_benchmark_is_on_its_page():
    text = (ROOT / 'docs/benchmark.md').read_text()
    for path in ROOT.glob('benchmarks/*.py'):
        if "if __name__ == '__main__'" in path.read_text():
            assert f'benchmarks/{path.name}' in text, path.name
