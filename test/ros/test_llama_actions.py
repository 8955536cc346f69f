"""The actions of llama_ros: feedback, result, cancel, pictures and tools."""

from __future__ import annotations

from array import array
import json

from action_msgs.msg import GoalStatus
import numpy as np
from PIL import Image as Pillow
import pytest
from rclpy.action import ActionClient
from sensor_msgs.msg import Image
from std_msgs.msg import UInt8MultiArray

from .conftest import ENDLESS_NODE, SAMPLE
from .robot import NodeProcess

DESCRIBE = 'Describe the picture.'
SAID = 'There is a dog on the left, an automobile in the middle and a sunflower on the right.'


@pytest.fixture(scope='module')
def llama(request, messages, robot, tmp_path_factory):
    """Run a node beside the messages of llama_ros; gives a client."""
    from llama_msgs import action, msg, srv

    robot.wait_until_alone()
    log = tmp_path_factory.mktemp('llama') / 'log'
    options = {'feed_type': 1, 'n_predict': 2000}
    node = NodeProcess(log, options, messages, ENDLESS_NODE)
    request.addfinalizer(node.end)
    robot.wait_until_ready(node)
    client = Client(robot, action, msg, srv)
    yield client
    client.close()
    assert node.stop()[0] == 0, node.log
    assert 'Traceback' not in node.log


class Client:
    """Sends goals, and keeps what comes back."""

    def __init__(self, robot, action, msg, srv):
        self.action, self.msg, self.srv, self.robot = action, msg, srv, robot
        self._clients = {
            kind: ActionClient(robot.node, kind, f'/llama/{name}')
            for kind, name in (
                (action.GenerateResponse, 'generate_response'),
                (action.GenerateChatCompletions, 'generate_chat_completions'),
            )
        }

    def close(self):
        for client in self._clients.values():
            client.destroy()

    def send(self, kind, goal):
        """Send a goal: (its handle, the feedback that comes)."""
        client, feedback = self._clients[kind], []
        self.robot.wait('a server', client.server_is_ready)
        sent = client.send_goal_async(goal, lambda message: feedback.append(message.feedback))
        self.robot.wait('accepted', sent.done)
        return sent.result(), feedback

    def result_of(self, handle):
        """Wait for the end of a goal: (status, result)."""
        result = handle.get_result_async()
        self.robot.wait('a result', result.done)
        return result.result().status, result.result().result

    def sampling(self, **more):
        return self.msg.SamplingConfig(temp=0.0, **more)

    def respond(self, prompt, **more):
        goal = self.action.GenerateResponse.Goal(prompt=prompt, sampling_config=self.sampling())
        for name, value in more.items():
            setattr(goal, name, value)
        return self.send(self.action.GenerateResponse, goal)

    def chat(self, *messages, sampling=None, **more):
        goal = self.action.GenerateChatCompletions.Goal(
            messages=[self.msg.ChatMessage(role=role, content=text) for role, text in messages],
            sampling_config=sampling or self.sampling(),
            **more,
        )
        return self.send(self.action.GenerateChatCompletions, goal)


@pytest.fixture(scope='module')
def picture():
    """Give the sample as cv_bridge sends what OpenCV has read."""
    bgr = np.asarray(Pillow.open(SAMPLE).convert('RGB'))[..., ::-1]
    height, width = bgr.shape[:2]
    image = Image(encoding='8UC3', height=height, width=width, step=3 * width)
    image.data = array('B', np.ascontiguousarray(bgr).tobytes())
    return image


def test_a_response_comes_piece_by_piece(llama, picture, robot):
    handle, feedback = llama.respond(f'<__media__>{DESCRIBE}', images=[picture], reset=True)
    status, result = llama.result_of(handle)
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert result.response.text.startswith(SAID) and len(result.response.tokens) > 20
    robot.wait(
        'all pieces',
        lambda: ''.join(f.partial_response.text for f in feedback) == result.response.text,
    )
    assert len(feedback) > 10
    # the next one goes on with the conversation, and another begins anew
    handle, _ = llama.respond('What is on the left?', stop=[' on the'])
    assert llama.result_of(handle)[1].response.text == 'There is a dog'
    handle, _ = llama.respond('What is on the left?', reset=True)
    assert 'dog' not in llama.result_of(handle)[1].response.text


def test_a_chat_with_a_picture_and_probabilities(llama, picture, robot):
    before = ('user', DESCRIBE), ('assistant', f'{SAID} The background is blue.')
    sampling = llama.sampling(n_probs=2)
    question = 'user', 'What is on the right?'
    handle, feedback = llama.chat(*before, question, images=[picture], sampling=sampling)
    status, result = llama.result_of(handle)
    assert status == GoalStatus.STATUS_SUCCEEDED and result.object == 'chat.completion'
    (choice,) = result.choices
    assert choice.message.content == 'There is a sunflower on the right.'
    assert (choice.message.role, choice.finish_reason) == ('assistant', 'stop')
    assert result.usage.total_tokens == (
        result.usage.prompt_tokens + result.usage.completion_tokens
    )
    assert len(choice.logprobs) == result.usage.completion_tokens + 1  # with that of the end
    assert choice.logprobs[0].data[0].probability > 0.9 and len(choice.logprobs[0].data) == 3
    robot.wait('its end', lambda: feedback and feedback[-1].choices[0].finish_reason == 'stop')
    pieces = [piece.choices[0].delta for piece in feedback]
    assert ''.join(piece.content for piece in pieces) == choice.message.content
    assert pieces[0].role == 'assistant' and {piece.id for piece in feedback} == {result.id}


def test_tools(llama, robot):
    parameters = {
        'type': 'object',
        'properties': {'side': {'enum': ['left', 'right']}},
        'required': ['side'],
        'additionalProperties': False,
    }
    tool = llama.msg.ChatTool(
        name='turn', description='Turns the robot', parameters=json.dumps(parameters)
    )
    tools = [llama.msg.ChatReqTool(function=tool)]
    required = llama.msg.ChatTool.TOOL_CHOICE_REQUIRED
    handle, feedback = llama.chat(('user', 'Turn left'), tools=tools, tool_choice=required)
    status, result = llama.result_of(handle)
    assert status == GoalStatus.STATUS_SUCCEEDED
    (call,) = result.choices[0].message.tool_calls
    assert call.name == 'turn' and json.loads(call.arguments)['side'] in ('left', 'right')
    assert result.choices[0].finish_reason == 'tool_calls'
    robot.wait('its end', lambda: feedback and feedback[-1].choices[0].finish_reason)
    pieces = [c for piece in feedback for c in piece.choices[0].delta.tool_calls]
    assert pieces[0].name == 'turn'
    assert ''.join(piece.arguments for piece in pieces) == call.arguments
    # the answer of the tool goes back
    goal = llama.action.GenerateChatCompletions.Goal(
        messages=[
            llama.msg.ChatMessage(role='user', content='Turn left'),
            llama.msg.ChatMessage(role='assistant', tool_calls=[call]),
            llama.msg.ChatMessage(role='tool', content='done', tool_call_id=call.id),
        ],
        sampling_config=llama.sampling(),
    )
    handle, _ = llama.send(llama.action.GenerateChatCompletions, goal)
    assert llama.result_of(handle)[0] == GoalStatus.STATUS_SUCCEEDED


def test_cancel_beside_others(llama, robot):
    """Two that never end are cancelled, and one goes on between them."""
    endless = llama.sampling(grammar='root ::= "la " root')
    first, heard = llama.chat(('user', 'Sing'), sampling=endless)
    second, others = llama.respond('Sing', sampling_config=endless, reset=True)
    robot.wait('both sing', lambda: len(heard) > 3 and len(others) > 3)
    handle, _ = llama.chat(('user', 'Hello'))
    assert llama.result_of(handle)[1].choices[0].message.content
    for goal in (first, second):
        cancelled = goal.cancel_goal_async()
        robot.wait('the cancel', cancelled.done)
        status, _ = llama.result_of(goal)
        assert status == GoalStatus.STATUS_CANCELED


@pytest.mark.parametrize(
    'wrong', ['mirostat', 'audios', 'marks', 'role', 'grammar', 'picture', 'tool_choice']
)
def test_what_cannot_be_followed_is_aborted(llama, wrong, picture):
    messages, more = [('user', 'Hello')], {}
    sampling = llama.sampling()
    if wrong == 'mirostat':
        sampling.mirostat = 2
    elif wrong == 'grammar':
        sampling.grammar = 'root ::= nothing'
    elif wrong == 'audios':
        more['audios'] = [UInt8MultiArray()]
    elif wrong == 'marks':
        messages = [('user', '<__media__> <__media__>')]
        more['images'] = [picture]
    elif wrong == 'role':
        messages = [('pope', 'Hello')]
    elif wrong == 'picture':
        more['images'] = [Image(encoding='8UC3', height=9, width=9, step=27)]
    else:
        more = {'tools': [llama.msg.ChatReqTool()], 'tool_choice': 9}
    handle, feedback = llama.chat(*messages, sampling=sampling, **more)
    assert llama.result_of(handle)[0] == GoalStatus.STATUS_ABORTED
    assert not feedback


def test_what_the_wrappers_ask(llama, robot):
    found = {}
    for kind, name, request in (
        (llama.srv.GetMetadata, 'get_metadata', llama.srv.GetMetadata.Request()),
        (llama.srv.Tokenize, 'tokenize', llama.srv.Tokenize.Request(text='a dog')),
    ):
        client = robot.node.create_client(kind, f'/llama/{name}')
        robot.wait(name, client.service_is_ready)
        answer = client.call_async(request)
        robot.wait(name, answer.done)
        found[name] = answer.result()
    assert found['get_metadata'].metadata.general.name == 'demo'
    assert found['get_metadata'].metadata.model.context_length == 4096
    assert len(found['tokenize'].tokens) >= 2
