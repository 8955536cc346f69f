"""The launch file of two machines: which nodes it makes on each, and what they are told."""

from __future__ import annotations

from hobot_vlm.config import EMBEDDING

from .test_launch import board, parameters_of, ros_launch, visit  # noqa: F401  # fixtures

LANGUAGE = {
    'feed_type': 1,
    'image_transport': EMBEDDING,
    'encoder_device': 'elsewhere',
    'ros_img_sub_topic_name': '/encode/embedding',
}


def test_each_machine_has_its_half(ros_launch, board):  # noqa: F811
    for package in ('hobot_vlm', 'rmw_zenoh_cpp'):
        board(package)
    board('hobot_usb_cam', 'hobot_usb_cam')
    nodes, context = visit(
        'split', part='vision', camera='usb', model='internvl3-1b', max_rate='1', domain_id='7'
    )
    assert nodes['hobot_vlm'].node_executable == 'encode'
    assert parameters_of(nodes['hobot_vlm']) == {
        'model': 'internvl3-1b',
        'image_transport': 'compressed',
        'max_rate': 1.0,
        'on_demand': False,
        'embedding_dtype': 'float16',
    }
    assert context.environment['ROS_DOMAIN_ID'] == '7'
    nodes, context = visit(
        'split', part='language', zenoh='listen', namespace='arm', model_file_name='vision.onnx',
        max_rate='1', llm_model_name='words.gguf',
    )  # fmt: skip
    assert nodes['hobot_vlm'].node_executable == 'hobot_vlm'
    assert parameters_of(nodes['hobot_vlm']) == {**LANGUAGE, 'llm_model_name': 'words.gguf'}
    remapped = ('/encode/embedding', 'encode/embedding')
    assert remapped in nodes['hobot_vlm'].expanded_remapping_rules
    assert nodes['rmw_zenoh_cpp'].node_executable == 'rmw_zenohd'
    assert context.environment['RMW_IMPLEMENTATION'] == 'rmw_zenoh_cpp'
