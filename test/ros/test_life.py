"""From the start of the process to its end: the first question, the load, signals, the graph."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
import signal
import subprocess
import sys

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
import numpy as np
from PIL import Image as Pillow
import pytest

from .conftest import ACTORS, MODELS, SAMPLE
from .robot import GONE, image
from .test_processes import begun, ENDLESS

QUESTION = 'Describe the picture.'
PLAIN = str(MODELS / 'plain' / 'decoder.gguf')
ENTRY = 'from hobot_vlm.ros.main import main; main()'
ENCODE = 'from hobot_vlm.ros.main import encode; encode()'
PLAY = 'from hobot_vlm.ros.main import play_images; play_images()'


def change(robot, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    return robot.call('change_state', request).success


def sample():
    return np.asarray(Pillow.open(SAMPLE).convert('RGB'))


# -- the first question ---------------------------------------------------------------------------


def test_user_prompt_is_asked_about_the_first_picture(robot, start):
    """As hobot_llamacpp does; once, and not after a pause again."""
    robot.clear()
    node = start(feed_type=1, user_prompt=QUESTION)
    camera = robot.camera()
    robot.wait('a reply', lambda: camera.publish(image(sample())) or robot.replies())
    (reply,) = robot.replies()
    assert (reply['prompt'], reply['error']) == (QUESTION, '')
    assert reply['image_tokens'] > 0
    assert change(robot, Transition.TRANSITION_DEACTIVATE)
    assert change(robot, Transition.TRANSITION_ACTIVATE), node.log
    assert robot.ask_about(image(sample()), 'Where is the dog?')['error'] == ''
    assert [reply['prompt'] for reply in robot.replies()] == [QUESTION, 'Where is the dog?']


def test_user_prompt_is_asked_at_once_without_pictures(robot, start):
    """And what stands in cute_words is said once, when the node is ready."""
    robot.clear()
    start(feed_type=2, llm_model_name=PLAIN, n_predict=4, user_prompt='yes', cute_words='我来啦')
    robot.wait('a reply', robot.replies)
    assert robot.replies()[0]['prompt'] == 'yes'
    robot.ask('And now?')
    robot.wait('speech of both', lambda: len(robot.heard['/tts_text']) >= 3)
    assert robot.heard['/tts_text'][0] == '我来啦'
    assert robot.heard['/tts_text'].count('我来啦') == 1


# -- while the model loads ------------------------------------------------------------------------


def test_the_node_answers_while_its_model_loads(robot, start, tmp_path):
    """Its state, its parameters and its diagnostics; by autostart, and when it is told to."""
    gate = tmp_path / 'gate'
    for autostart in (True, False):
        robot.clear()
        node = start(
            ready=False,
            program=(str(ACTORS), 'slow', str(gate)),
            autostart=autostart,
            feed_type=2,
            llm_model_name=PLAIN,
            n_predict=4,
        )
        if not autostart:
            client = robot._clients['change_state']
            robot.wait('the service', client.service_is_ready)
            request = Transition(id=Transition.TRANSITION_CONFIGURE)
            configured = client.call_async(ChangeState.Request(transition=request))
        robot.wait(
            'loading', lambda: robot.status() and robot.status().message == 'loading the model'
        )
        count = len(robot.heard['/diagnostics'])
        robot.wait('more diagnostics', lambda n=count: len(robot.heard['/diagnostics']) > n + 1)
        state = robot.call('get_state').current_state
        assert state.id == State.TRANSITION_STATE_CONFIGURING, state
        assert robot.set('n_predict', 3).successful
        gate.touch()
        if not autostart:
            robot.wait('configured', configured.done)
            assert configured.result().success
            assert change(robot, Transition.TRANSITION_ACTIVATE)
        robot.wait_until_ready(node)
        assert robot.ask('Hello')['error'] == ''
        gate.unlink()
        node.end()


def test_a_signal_while_the_model_loads(robot, start, tmp_path):
    robot.clear()
    node = start(ready=False, program=(str(ACTORS), 'slow', str(tmp_path / 'never')), feed_type=2)
    robot.wait('loading', lambda: robot.status() and robot.status().message.startswith('loading'))
    assert node.stop()[0] == 0
    assert 'Traceback' not in node.log
    robot.wait('nobody', lambda: 'hobot_vlm' not in robot.node.get_node_names(), GONE)


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('busy', [False, True])
def test_a_node_that_ended_is_gone_from_the_graph(robot, start, number, busy):
    """At once: the middleware would show one that was only dropped for 20 seconds."""
    node = start(**ENDLESS)
    robot.wait('it is seen', lambda: 'hobot_vlm' in robot.node.get_node_names())
    if busy:
        begun(robot)
    assert node.stop(number)[0] == 0
    robot.wait('no ghost', lambda: 'hobot_vlm' not in robot.node.get_node_names(), GONE)
    robot.wait('no service', lambda: not robot._clients['get_state'].service_is_ready(), GONE)


def test_a_signal_that_another_thread_meets(robot, start):
    """The kernel chooses the thread, and not always the first one."""
    node = start(ready=False, program=('-c', ENCODE), model='demo')
    robot.wait('ready', lambda: 'ready' in node.log)
    number = node.process.pid
    others = {int(name) for name in os.listdir(f'/proc/{number}/task')} - {number}
    assert ctypes.CDLL(None).tgkill(number, max(others), signal.SIGINT) == 0
    assert node.wait() == 0


def test_a_node_that_fails_to_start_is_gone_from_the_graph(robot, start):
    node = start(ready=False, llm_model_name='/no/such/model.gguf')
    assert node.wait() == 1
    robot.wait('no ghost', lambda: 'hobot_vlm' not in robot.node.get_node_names(), GONE)


@pytest.mark.parametrize('program', [ENTRY, PLAY])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize('module', ['rclpy', 'numpy', 'hobot_vlm.errors'])
def test_a_signal_while_modules_are_loaded(program, number, module):
    """It ends quietly, whatever is being imported."""
    stop = (
        'import importlib.abc, sys, time\n'
        'class Stop(importlib.abc.MetaPathFinder):\n'
        '    def find_spec(self, name, path, target=None):\n'
        f'        if name == {module!r} and "hobot_vlm.ros.main" in sys.modules:\n'
        '            print("here", flush=True)\n'
        '            time.sleep(60)\n'
        'sys.meta_path.insert(0, Stop())\n'
        'sys.modules.pop("numpy", None)\n'
    )
    if module == 'hobot_vlm.errors':
        stop += 'import hobot_vlm.ros.main\nsys.modules.pop("hobot_vlm.errors", None)\n'
    process = subprocess.Popen(
        [sys.executable, '-c', stop + program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'here\n'
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    assert (process.returncode, log) == (0, '')


def test_the_entry_loads_nothing_heavy():
    """What is loaded before signals have their meaning."""
    code = 'import hobot_vlm.ros.main, sys; print(*sys.modules)'
    loaded = subprocess.check_output([sys.executable, '-c', code], text=True).split()
    assert not {'numpy', 'rclpy', 'llama_cpp', 'yaml', 'PIL'} & set(loaded)


# -- where the answer is printed ------------------------------------------------------------------

TALKATIVE = [
    *('--ros-args', '-p', f'model_file_name:={MODELS / "internvl" / "vision.onnx"}'),
    *('-p', f'llm_model_name:={MODELS / "internvl" / "decoder.gguf"}'),
    *('-p', 'n_predict:=100000', '-p', 'llm_threads:=1'),
]


def test_a_pipe_that_nobody_reads_any_more():
    """As in `hobot_vlm ... | head -c 5`: it ends, and not with success."""
    node = subprocess.Popen(
        [sys.executable, '-c', ENTRY, *TALKATIVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert len(node.stdout.read(5)) == 5
    node.stdout.close()
    log = node.stderr.read().decode()
    node.stderr.close()
    assert node.wait(60) == 1
    assert 'the answer cannot be printed' in log
    assert 'Traceback' not in log


def test_a_disk_that_is_full():
    with open('/dev/full', 'w') as full:
        done = subprocess.run(
            [sys.executable, '-c', ENTRY], stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode == 1
    assert b'the answer cannot be printed' in done.stderr
    assert b'Traceback' not in done.stderr


def test_letters_that_the_output_lacks():
    done = subprocess.run(
        [sys.executable, '-c', ENTRY, '--ros-args', '-p', 'user_prompt:=描述一下这张图片。'],
        env=os.environ | {'PYTHONIOENCODING': 'ascii'},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stdout.count(b'?') > 5


# -- prompts and the states -----------------------------------------------------------------------


def test_prompts_while_inactive_are_answered_when_active(robot, start):
    robot.clear()
    node = start(ready=False, feed_type=1, autostart=False)
    assert change(robot, Transition.TRANSITION_CONFIGURE), node.log
    robot.wait('prompts are read', robot._prompts.get_subscription_count)
    for number in range(7):
        robot.say(f'{number}: what colour is the background?')
    robot.wait(
        'they wait', lambda: robot.status() and robot.values().get('prompts waiting') == '7'
    )
    assert robot.status().message == '7 prompts wait: activate the node'
    assert robot.status().level == b'\1'  # what waits is not healthy
    robot.request({'id': 'early', 'prompt': QUESTION})
    assert 'the node is not active' in robot.reply_to('early')['error']
    assert change(robot, Transition.TRANSITION_ACTIVATE), node.log
    camera = robot.camera()
    robot.wait('all replies', lambda: camera.publish(image(sample())) or len(robot.replies()) == 8)
    assert [reply['error'] for reply in robot.replies()[1:]] == [''] * 7


def test_all_that_waits_is_cancelled(robot, start):
    """Forty prompts and a request; one message ends them all, and each has its reply."""
    start(**ENDLESS)
    begun(robot)
    for number in range(39):
        robot.say(f'Question {number}')
    robot.request({'id': 'side', 'prompt': 'Hello'})
    robot.wait('they wait', lambda: robot.values().get('prompts waiting') == '39')
    robot.request({'cancel': 'all'})
    robot.wait('all replies', lambda: len(robot.replies()) == 41)
    assert {reply['finish_reason'] for reply in robot.replies()} == {'cancelled'}
    assert robot.set('n_predict', 4).successful
    assert robot.ask('The next one')['finish_reason'] == 'length'


def test_prompts_of_megabytes_are_refused_in_few_words(robot, start):
    """What waits is weighed, and replies do not repeat it."""
    start(**ENDLESS)
    begun(robot)
    for _ in range(40):
        robot.say('x' * 1_000_000)
    robot.wait('refusals', lambda: len(robot.replies()) >= 40 - 16)
    assert all('prompts wait, and at most' in reply['error'] for reply in robot.replies())
    assert max(map(len, robot.heard['/hobot_vlm/reply'])) < 3000
    robot.request({'cancel': 'all'})
    robot.wait('all replies', lambda: len(robot.replies()) == 41)


# -- the file of a conversation -------------------------------------------------------------------


def test_a_state_file_that_is_a_link(robot, start, tmp_path):
    """It stays one, and what it points to is written."""
    target, link = tmp_path / 'target', tmp_path / 'link'
    link.symlink_to(target)
    robot.clear()
    node = start(feed_type=2, llm_model_name=PLAIN, n_predict=4, state_file=link)
    assert robot.ask('Hello')['error'] == ''
    assert node.stop()[0] == 0
    assert link.is_symlink() and Path(os.readlink(link)) == target
    assert target.stat().st_size > 0


@pytest.mark.parametrize('kind', ['FIFO', 'folder', 'link to a FIFO'])
def test_a_state_file_that_is_no_file(start, tmp_path, kind):
    path = tmp_path / 'talk'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'FIFO':
        os.mkfifo(path)
    else:
        os.mkfifo(tmp_path / 'fifo')
        path.symlink_to(tmp_path / 'fifo')
    node = start(ready=False, feed_type=2, llm_model_name=PLAIN, state_file=path)
    assert node.wait() == 1
    assert f'state_file is {path}, and that is' in node.log


# -- namespaces -----------------------------------------------------------------------------------


def test_two_robots_in_namespaces_share_no_topic(robot, start):
    """The topics follow the node; what was named stays as it was named."""
    from std_msgs.msg import String

    programs = [
        ('-m', 'hobot_vlm.ros.main', '--ros-args', '-r', f'__ns:=/{side}')
        for side in ('left', 'right')
    ]
    options = {'feed_type': 2, 'llm_model_name': PLAIN, 'n_predict': 4}
    start(ready=False, program=programs[0], **options)
    start(ready=False, program=programs[1], **options, text_msg_pub_topic_name='/tts_text')
    node, heard = robot.node, robot.heard
    for side in ('left', 'right'):
        for topic in ('tts_text', 'hobot_vlm/result', 'hobot_vlm/reply'):
            robot.listen(f'/{side}/{topic}', String)
    left = node.create_publisher(String, '/left/prompt_text', 10)
    robot.wait(
        'both',
        lambda: (
            left.get_subscription_count()
            and all(
                node.count_publishers(f'/{side}/hobot_vlm/reply') for side in ('left', 'right')
            )
            and node.count_publishers('/tts_text')
        ),
    )
    assert not robot._prompts.get_subscription_count()
    left.publish(String(data='Hello'))
    robot.wait('a result', lambda: heard['/left/hobot_vlm/result'])
    assert json.loads(heard['/left/hobot_vlm/reply'][0])['prompt'] == 'Hello'
    assert not heard['/right/hobot_vlm/reply']
    names = {f'{side}/hobot_vlm: answers' for side in ('left', 'right')}
    robot.wait(
        'diagnostics of both',
        lambda: names == {array.status[0].name for array in heard['/diagnostics'][-4:]},
    )
    assert not node.count_publishers('/right/tts_text')
