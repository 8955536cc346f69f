"""The page, in a real Chromium: what a person does with it. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path
import shutil
import threading
import time

from core import parts
from hobot_vlm import VLM
from hobot_vlm.errors import ConfigError
from hobot_vlm.server.guard import Settings
from hobot_vlm.server.live import Live, LivePicture, StandingQuestion
from hobot_vlm.values import Box
import numpy as np
from PIL import Image
import pytest

from .conftest import ENDLESS, QUESTION, serving

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
if not CHROMIUM:
    pytest.skip('Chromium is not installed: apt install chromium', allow_module_level=True)
api = pytest.importorskip('playwright.sync_api', reason='pip install playwright')

FLAGS = ['--no-sandbox', '--disable-background-networking', '--use-fake-device-for-media-stream',
         '--use-fake-ui-for-media-stream']  # fmt: skip
LAST = 'article.model:last-of-type'
DONE = f'{LAST} .again'
GREEN = (61, 220, 151)  # of boxes, in eye.js


@pytest.fixture(scope='module')
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Open the page of a server; what it complains of, or fetches elsewhere, fails the test."""
    wrong, contexts = [], []

    def opened(server, **more):
        def foreign(url):
            if not url.startswith((server.url, 'data:', 'blob:')):
                wrong.append(url)

        context = browser.new_context(locale=more.pop('locale', 'en-US'), **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30000)
        page.on('pageerror', lambda error: wrong.append(str(error)))
        page.on('request', lambda request: foreign(request.url))
        page.goto(server.url)
        page.wait_for_selector('#state[data-state=ready]')
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not wrong


def until(page, expression):
    """Wait until something is true; the policy of the page forbids Playwright's own way."""
    end = time.monotonic() + 30
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def ask(page, question):
    page.fill('#question', question)
    page.press('#question', 'Enter')
    page.wait_for_selector(DONE)
    return page.inner_text(f'{LAST} .text')


def test_a_picture_is_sent_and_the_answer_read(server, open_page, demo, sample):
    page = open_page(server)
    assert page.inner_text('#model') == 'demo'
    page.set_input_files('#file', sample)
    page.wait_for_selector('#pictures img')
    assert ask(page, QUESTION) == demo.ask(QUESTION, sample).text
    assert page.locator('article.user img').count() == 1
    assert page.locator('#pictures img').count() == 0
    assert 'first token' in page.inner_text(f'{LAST} .times')
    again = ask(page, 'What is on the left?')
    assert 'dog' in again
    reused, prompt = map(int, page.inner_text(f'{LAST} .times').split(' reused')[0]
                         .split()[-1].split('/'))  # fmt: skip
    assert reused >= 36 and prompt > reused  # the picture is in the KV cache
    page.click(DONE)
    page.wait_for_selector(DONE)
    assert page.inner_text(f'{LAST} .text') == again
    assert page.locator('article').count() == 4
    page.click('#fresh')
    assert page.locator('article').count() == 0
    assert page.is_visible('#welcome')


def test_it_says_which_tile_is_being_encoded(server, open_page, demo, monkeypatch, tmp_path):
    encoder, go_on = parts(demo).encoder, threading.Event()
    encode = encoder.encode
    monkeypatch.setattr(encoder, 'encode', lambda tiles: go_on.wait(30) and encode(tiles))
    Image.new('RGB', (64, 64), (7, 90, 3)).save(tmp_path / 'new.png')
    page = open_page(server)
    page.set_input_files('#file', tmp_path / 'new.png')
    page.wait_for_selector('#pictures img')
    page.press('#question', 'Enter')
    page.wait_for_selector(f'{LAST}[data-encoding*="tile 1/1"]')
    go_on.set()
    page.wait_for_selector(DONE)
    assert not page.locator(f'{LAST}[data-encoding]').count()


def test_pictures_are_dropped_and_removed(server, open_page, picture):
    page = open_page(server)
    drop = """async ([url, names]) => {
        const data = new DataTransfer();
        const blob = await (await fetch(url)).blob();
        for (const name of names) data.items.add(new File([blob], name, {type: 'image/png'}));
        const init = {dataTransfer: data, bubbles: true, cancelable: true};
        document.body.dispatchEvent(new DragEvent('dragover', init));
        document.body.dispatchEvent(new DragEvent('drop', init));
    }"""
    page.context.close()
    page = open_page(server, bypass_csp=True)  # the page itself may not fetch a data URL
    page.evaluate(drop, [picture, ['a.png', 'b.png']])
    page.wait_for_selector('#pictures li:nth-child(2)')
    assert page.is_hidden('#drop')
    page.click('#pictures li:first-child button')
    assert page.locator('#pictures img').count() == 1
    assert 'dog' in ask(page, QUESTION)


def test_what_is_no_picture_is_said(server, open_page, tmp_path):
    page = open_page(server)
    broken = tmp_path / 'broken.png'
    broken.write_bytes(b'no picture')
    page.set_input_files('#file', str(broken))
    page.wait_for_selector('[role=alert]')
    assert 'PNG or JPEG' in page.inner_text('[role=alert]')
    assert 'Hello' in ask(page, 'Hello')


def test_an_answer_is_stopped_and_the_next_one_made(open_page, tmp_path):
    options = {'grammar': ENDLESS['grammar'], 'n_predict': 100000, 'n_ctx': 65536}
    with VLM.load('demo', **options) as vlm, serving(vlm) as server:
        page = open_page(server)
        for stop in (lambda: page.click('#send'), lambda: page.keyboard.press('Escape')):
            page.fill('#question', 'Go on')
            page.press('#question', 'Enter')
            until(page, f'document.querySelector("{LAST}.busy .text")?.textContent.length > 20')
            assert page.get_attribute('#send', 'aria-label') == 'Stop'
            stop()
            page.wait_for_selector(DONE)
            assert 'stopped' in page.inner_text(f'{LAST} .times')
            end = time.monotonic() + 20
            while vlm.status().running:
                assert time.monotonic() < end
        assert page.get_attribute('#send', 'aria-label') == 'Send'


def test_an_error_is_said_and_the_next_question_answered(open_page, demo):
    page_of = '{"max_tokens": "no"}'
    with serving(demo, Settings(max_body=3000)) as server:
        page = open_page(server)
        page.fill('#question', page_of * 200)
        page.press('#question', 'Enter')
        page.wait_for_selector(f'{LAST} .error')
        assert '--max-body' in page.inner_text(f'{LAST} .error')
        assert 'Hello' in ask(page, 'Hello')


def test_the_key_is_asked_for(open_page, demo):
    with serving(demo, Settings(api_key='sesame')) as server:
        page = open_page(server)
        page.wait_for_selector('#options[open]')
        assert page.is_visible('#key-wanted')
        page.fill('#key', 'sesame')
        page.press('#key', 'Enter')
        page.wait_for_selector('#model:not([hidden])')
        assert 'Hello' in ask(page, 'Hello')


def test_the_settings_are_followed(server, open_page):
    page = open_page(server)
    page.click('#settings')
    page.fill('#max-tokens', '2')
    page.press('#max-tokens', 'Enter')
    ask(page, 'Hello')
    assert 'cut at the limit' in page.inner_text(f'{LAST} .times')


def test_the_camera_of_the_browser(server, open_page):
    page = open_page(server)
    page.click('#camera')
    page.wait_for_selector('#eye:not([hidden])')
    until(page, 'document.getElementById("view").width > 100')
    ask(page, QUESTION)
    assert page.locator('article.user img').count() == 1
    page.click('#close-camera')
    assert page.is_hidden('#eye')
    ask(page, 'Hello')
    assert page.locator('article.user:last-of-type img, article.user img').count() == 1


@pytest.fixture
def robot(sample):
    """Give a robot that sees the bundled picture, and has found things in it."""
    image = np.asarray(Image.open(sample).convert('RGB'))
    boxes, points = (Box('dog', 40, 128, 216, 322),), (('sunflower', 528.0, 180.0),)
    asked = StandingQuestion('door-1', 'Is the door open?', 'no', time.time())
    return Live(lambda: LivePicture(image.copy(), boxes, points, '/image'), lambda: [asked])


def test_the_live_picture_of_a_robot(open_page, demo, robot):
    with serving(demo, live=robot) as server:
        page = open_page(server)
        page.wait_for_selector('#source:has-text("/image")')
        pixel = page.evaluate(
            'Array.from(document.getElementById("view").getContext("2d")'
            '.getImageData(40, 250, 1, 1).data)'
        )
        assert np.abs(np.subtract(pixel[:3], GREEN)).max() < 40
        assert 'dog' in ask(page, QUESTION)
        assert page.locator('article.user img').count() == 1
        page.uncheck('#attach-live')
        ask(page, 'What is on the right?')
        assert page.locator('article.user img').count() == 1
        page.wait_for_selector('#standing-answers li:has-text("door-1: no")')
        page.fill('#standing-text', 'What is on the left?')
        page.select_option('#standing-every', '1')
        page.click('#standing-go')
        page.wait_for_selector('#standing-answers li:nth-child(3)')
        assert 'dog' in page.inner_text('#standing-answers li:first-child')
        page.click('#standing-go')
        assert page.get_attribute('#standing-go', 'aria-pressed') == 'false'
        page.select_option('#rate', '15')
        assert 'dog' in ask(page, 'What is on the left?')


def test_the_questions_of_a_robot(open_page, demo, robot):
    """What it asks is listed with the answers; one is added, refused and removed."""
    asked = {'door': StandingQuestion('door', 'Is it open?', 'no', time.time(), 0.05)}
    asked['cat'] = StandingQuestion('cat', 'Is there a cat?', '', 0.0, None, True)

    def change(name, question):
        if ' ' in name:
            raise ConfigError('a name of letters', 'watch')
        asked.pop(name, None)
        if question:
            asked[name] = StandingQuestion(name, question, '', 0.0)

    live = Live(robot.picture, lambda: list(asked.values()), change)
    with serving(demo, live=live) as server:
        page = open_page(server)
        page.wait_for_selector('#watches li:has-text("door: Is it open?") p:has-text("no · 95 %")')
        page.wait_for_selector('#watches li[data-state=wrong] p:has-text("stale")')
        page.fill('#watch-name', 'the dog')
        page.click('#watch-add')
        page.wait_for_selector('#watch-error:has-text("a name of letters")')
        page.fill('#watch-name', 'dog')
        page.fill('#standing-text', 'Is there a dog?')
        page.click('#watch-add')
        page.wait_for_selector('#watches li[data-state=unknown]:has-text("dog: Is there a dog?")')
        assert page.is_hidden('#watch-error')
        page.click('#watches li:has-text("cat") button')
        until(page, "document.querySelectorAll('#watches li').length == 2")
    assert list(asked) == ['door', 'dog']


def test_both_languages(server, open_page):
    page = open_page(server, locale='zh-CN')
    assert page.get_attribute('html', 'lang') == 'zh'
    assert '给我看一张图片' in page.inner_text('#welcome')
    assert page.get_attribute('#send', 'aria-label') == '发送'
    page.click('#language')
    assert page.get_attribute('html', 'lang') == 'en'
    assert 'Show me a picture' in page.inner_text('#welcome')
    page.reload()
    assert page.get_attribute('html', 'lang') == 'en'
    missing = page.evaluate("""[...document.querySelectorAll('body *')].filter((e) =>
        !e.closest('#words, svg, select, #language') && e.childElementCount === 0
        && /[a-z]{3}/i.test(e.textContent) && !e.dataset.zh
        && !['model', 'ready'].includes(e.id)).map((e) => e.outerHTML)""")
    assert [item for item in missing if 'hobot_vlm</h1>' not in item
            and 'id="model"' not in item and '<span>ready' not in item] == []  # fmt: skip


def test_phone_width(open_page, demo, robot, sample):
    phone = {'viewport': {'width': 360, 'height': 640}, 'is_mobile': True, 'has_touch': True}
    for live in (None, robot):
        with serving(demo, live=live) as server:
            page = open_page(server, **phone)
            page.set_input_files('#file', sample)
            page.wait_for_selector('#pictures img')
            ask(page, 'word ' * 60 + 'x' * 200)
            wide, high = page.evaluate(
                '[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]'
            )
            assert wide <= 360 and high <= 640
            for name in ('#send', '#attach', '#camera', '#language', '#settings', '#fresh'):
                box = page.locator(name).bounding_box()
                assert box['x'] >= 0 and box['x'] + box['width'] <= 360
                assert box['y'] >= 0 and box['y'] + box['height'] <= 640
                assert min(box['width'], box['height']) >= 40


def test_keyboard_and_screen_reader(server, open_page):
    page = open_page(server)
    unnamed = page.evaluate("""[...document.querySelectorAll('button, input, select, textarea')]
        .filter((e) => !e.hidden && !e.ariaLabel && !e.textContent.trim() && !e.closest('label'))
        .map((e) => e.outerHTML)""")
    assert unnamed == []
    page.keyboard.press('Tab')
    assert page.evaluate('document.activeElement.className') == 'skip'
    page.keyboard.press('Enter')
    until(page, 'document.activeElement.id === "question"')
    page.keyboard.type('Hello')
    page.keyboard.press('Shift+Enter')
    assert page.input_value('#question') == 'Hello\n'
    page.keyboard.press('Enter')
    page.wait_for_selector(DONE)
    assert page.inner_text('#spoken') == page.inner_text(f'{LAST} .text')
    assert page.get_attribute(LAST, 'aria-busy') == 'false'
    headings = page.evaluate("[...document.querySelectorAll('h1')].length")
    assert headings == 1


def test_the_page_forbids_what_is_not_its_own(http):
    policy = http.get('/').headers['content-security-policy']
    assert "default-src 'none'" in policy and 'unsafe' not in policy
    folder = Path(__file__).parents[2] / 'hobot_vlm' / 'server' / 'page'
    for path in folder.iterdir():
        text = path.read_text(encoding='utf-8')
        assert '//' not in text.replace('http://www.w3.org/2000/svg', '') or path.suffix == '.js'
        assert 'https:' not in text and 'onclick=' not in text
