"""
Make the pictures of the page that the documents show: the real page, in a real Chromium.

``python tools/make_screenshots.py`` writes page.png, page_phone.png and page_robot.png into docs.
Needs Chromium (``apt install chromium``) and playwright.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
import shutil
import time
from typing import Any

from hobot_vlm import VLM
from hobot_vlm.server.guard import Settings
from hobot_vlm.server.http import create_app, HttpServer
from hobot_vlm.server.live import Live, LivePicture, StandingQuestion
from hobot_vlm.values import Box
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / 'hobot_vlm' / 'demo' / 'sample.png'
FLAGS = ['--no-sandbox', '--disable-background-networking', '--use-fake-device-for-media-stream',
         '--use-fake-ui-for-media-stream']  # fmt: skip


def ask(page: Page, question: str) -> None:
    """Type a question, and wait for the whole answer."""
    page.fill('#question', question)
    page.press('#question', 'Enter')
    page.wait_for_selector('article.model:last-of-type .again')


def talk(page: Page, url: str, live: bool) -> None:
    """Ask twice about the bundled picture: sent, or seen live."""
    page.goto(url)
    page.wait_for_selector('#state[data-state=ready]')
    if live:
        page.wait_for_selector('#source:has-text("/image")')
    else:
        page.set_input_files('#file', str(SAMPLE))
        page.wait_for_selector('#pictures img')
    ask(page, 'Describe the picture.')
    if live:
        page.uncheck('#attach-live')
    ask(page, '左边是什么？')


def robot() -> Live:
    """Give the live picture of a robot that has found something."""
    image = np.asarray(Image.open(SAMPLE).convert('RGB'))
    dog = (Box('dog', 40, 128, 216, 322),)

    def picture() -> LivePicture:
        return LivePicture(image.copy(), dog, (('sunflower', 528, 180),), '/image')

    def questions() -> list[StandingQuestion]:
        return [StandingQuestion('dog', 'Is there a dog?', 'yes', time.time())]

    return Live(picture, questions)


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs', help='folder (docs)')
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    chromium = shutil.which('chromium') or shutil.which('chromium-browser')
    with VLM.load('demo') as vlm, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)

        def shoot(name: str, live: Live | None, width: int, height: int, **more: Any) -> None:
            size = {'width': width, 'height': height}
            page = browser.new_page(viewport=size, device_scale_factor=2, **more)
            app, service = create_app(vlm, Settings(), live)
            with HttpServer(app, service, '127.0.0.1', 0) as server:
                talk(page, server.url, live is not None)
                if live:
                    page.fill('#standing-text', 'What is in the middle?')
                    page.click('#standing-go')
                    page.wait_for_selector('#standing-answers li:nth-child(3)')
                page.wait_for_timeout(400)
                picture = Image.open(io.BytesIO(page.screenshot()))
                picture.quantize(256).save(out / f'{name}.png', optimize=True)  # a third of it
                page.close()

        shoot('page', None, 960, 720)
        shoot('page_phone', None, 390, 780, has_touch=True, is_mobile=True)
        shoot('page_robot', robot(), 1280, 760, color_scheme='dark')
        browser.close()


if __name__ == '__main__':
    main()
