"""
Write the tables in docs, in both languages: ``python tools/make_tables.py``.

The parameters are the fields of ``NodeConfig``, topics and services stand in ``ros/topics.py``,
both with English words; the Chinese words for them stand here. A test runs this and compares.
"""

from __future__ import annotations

from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from hobot_vlm.config import Config, family_words, NodeConfig
from hobot_vlm.ros import topics

ROOT = Path(__file__).parents[1]

CHINESE = {
    'model': '模型目录中的名称（见 `vlm models`），或服务器地址，如 http://host:8000/v1；'
    '直接给出文件名时以文件名为准，而不用目录',
    'remote_model': '地址所指服务器上的模型名称；留空则用其列出的第一个',
    'remote_timeout': '服务器多少秒没有给出回答的任何片段就算无响应',
    'remote_image_side': '发往服务器的图片的最长边（像素）',
    'remote_jpeg_quality': '发往服务器的 JPEG 图片的质量',
    'fallback': '服务器不回答时由目录中的哪个模型回答；留空则没有',
    'model_file_name': '视觉编码器：.onnx、.bin、.hbm 或 mmproj .gguf',
    'llm_model_name': '语言模型：llama.cpp 的 .gguf 文件',
    'model_type': f'模型系列：{"，".join(family_words(" 为 "))}，-1 根据文件自动判断',
    'auto_download': '本机没有目录中的模型时自动下载',
    'system_prompt': '系统提示词：文本，或文本文件的路径；留空则用模型系列自带的',
    'thinking': '让 InternVL3.5 先思考再回答；思考过程不进入语音和结果',
    'fit': '图片如何填入图块；留空则与模型训练时一致',
    'max_tiles': '每张图片最多切成几块，缩略图不计；0 表示按模型原有的设置，在 BPU 上为 1',
    'keep_image_tokens': '语言模型读取的图片嵌入比例：越小越快，结果为近似，不能用于检测框',
    'n_ctx': 'KV 缓存的单元数（上下文长度）',
    'n_predict': '一次回答最多生成的 token 数',
    'n_batch': '读取提示词时一次最多解码的 token 数；在 GPU 上更大更快',
    'n_gpu_layers': '放到 GPU 上的语言模型层数，不为 0 时 mmproj 也在 GPU 上；-1 表示全部',
    'split_mode': '多个 GPU 如何分担语言模型：按层，按矩阵的行，或 none：全在 main_gpu 上',
    'main_gpu': 'split_mode 为 none 时用的 GPU，row 时存放不能拆分的部分；从 0 数起',
    'tensor_split': '每个 GPU 的份额，如 3,1；留空则按各自的空闲显存',
    'llm_threads': '语言模型的线程数；0 表示每核一个',
    'encoder_threads': 'CPU 编码器的线程数；0 表示每核一个',
    'encoder_device': '由谁运行视觉编码器：cpu、cpu-int8、openvino、libmtmd、bpu，或 ONNX Runtime '
    '的其他执行提供程序，如 cuda；auto：首次加载文件时测速，取最快的；'
    'elsewhere：本机不编码，图片以编码后的形式传来',
    'bpu_priority': 'BPU 编码器的调度优先级',
    'bpu_cores': '编码器使用的 BPU 核，如 0 或 0,1；留空不限',
    'temperature': '回答的随机程度；0 表示总取最可能的 token',
    'top_k': '只在最可能的 k 个 token 中选；0 表示不限',
    'top_p': '只在累计概率达到此值的最可能 token 中选',
    'min_p': '舍去概率低于最可能 token 的此比例的 token',
    'repeat_penalty': '对重复 token 的惩罚；1 表示不惩罚',
    'seed': '随机选择的种子；-1 表示每次不同',
    'grammar': '每个回答都要遵守的 GBNF 语法：文本，或文件路径',
    'json_schema': '每个回答都要遵守的 JSON Schema：文本或文件路径；'
    '在 Python 中也可以是 dict 或 pydantic 类',
    'regex': '每个回答从头到尾都要匹配的正则表达式',
    'lora': '语言模型的 LoRA 适配器：.gguf',
    'lora_scale': 'LoRA 适配器的强度',
    'cache_type': 'KV 缓存的数值格式；q8_0/f16：键用 q8_0，值用 f16',
    'flash_attention': '融合注意力；量化的 KV 缓存需要它',
    'mmap': '把语言模型映射到内存，而不是整个读入',
    'warm_up': '启动时先空跑一次，使第一个回答不至于更慢',
    'feed_type': '0 本地图片，1 订阅图片和提示词，2 只订阅提示词（无图片）',
    'image': 'feed_type 为 0 时读取的图片；留空则用自带的示例图',
    'image_type': '本地图片的类型；0 表示图片文件',
    'is_shared_mem_sub': '1 表示在 /hbmem_img 上订阅 hbm_img_msgs',
    'user_prompt': 'feed_type 为 0 或 trigger 为 image 时的问题；否则是启动后的第一个问题',
    'cute_words': '用 ; 分隔的短语，回答之前随机说一句；feed_type 为 2 时只在就绪后说一次',
    'pre_infer': '1 听到“你好”就先编码最新的图片，2 总是在提示词到来之前编码',
    'ai_msg_pub_topic_name': 'ai_msgs/PerceptionTargets 的话题',
    'text_msg_pub_topic_name': '逐句发布回答的话题',
    'result_pub_topic_name': '发布完整回答的话题',
    'ros_img_sub_topic_name': '图片的话题；多个话题用 , 分隔',
    'ros_string_sub_topic_name': '提示词的话题',
    'frames': '提示词所涉及的每台相机的最新图片数；多于一张时作为视频',
    'frame_period': 'frames：相邻两张之间至少相隔多少秒',
    'image_transport': '图片消息的种类；auto 表示订阅实际发布的那一种；embedding：由 '
    '`ros2 run hobot_vlm encode` 编码',
    'image_qos': '订阅图片的可靠性；auto 跟随所有发布者所提供的',
    'trigger': '由什么引发回答：提示词，或每张图片配 user_prompt',
    'max_rate': 'trigger 为 image 时每秒最多回答几次；0 表示来多少答多少',
    'skip_similar': 'trigger 为 image 时跳过与上次回答过的相似的图片',
    'max_image_age': '图片超过多少秒就算太旧；0 表示不限',
    'old_images': '图片比 max_image_age 更旧时：回答并警告，或拒绝回答',
    'watch': '关于画面的持续提问，每条写作 "名称: 问题"',
    'watch_rate': '持续提问每秒最多问几次',
    'watch_hold': '持续提问的答案要保持多少秒才发布',
    'parser_mode': '0 文本，1 每个提示词是要找的东西，或 /point dog 这样的任务，并发布其框和点',
    'conversation': '各个提问是同一对话中的各轮；feed_type 为 2 时总是如此',
    'overflow': '上下文已满时：丢弃对话中最早的几轮，或拒绝提问',
    'state_file': '在两次运行之间保存对话的文件；空：不保存',
    'serve': 'HTTP API 及其网页的端口；0 表示不开',
    'serve_host': 'serve 监听的地址',
    'allow_urls': '获取请求（话题和 HTTP）中以 http(s) 地址给出的图片',
    'stay_alive': 'feed_type 为 0 时，回答之后继续运行',
    'autostart': '启动时自动完成 configure 和 activate',
}


CHINESE_TOPICS = {
    topics.IMAGE: '输入；图片，只保留最新一张',
    topics.COMPRESSED_IMAGE: '输入；相机发布这种消息时代替前者',
    topics.EMBEDDINGS: '输入；设 `image_transport:=embedding` 时代替前者；由另一台机器'
    '[编码的图片](machines_cn.md)',
    topics.HBM_IMAGE: '输入；设 `is_shared_mem_sub:=1` 时代替前者',
    topics.PROMPT: '输入；最多排队 1000 条提示词，依次回答',
    topics.REQUEST: '输入；[JSON](requests.md)：带 id 的提问，选项和图片自定，同时回答',
    topics.SPEECH: '输出；逐句发布的回答，供语音播报',
    topics.RESULT: '输出；完整回答，保留最后一条',
    topics.REPLY: '输出；[JSON](reply.md)：回答、token 数、耗时、时间戳，或错误原因',
    topics.CHUNK: '输出；[JSON](requests.md)：对 request 的回答，逐段发布',
    topics.TARGETS: '输出；装有该包时发布，回答在 `targets[0].type` 里，各阶段耗时在 `perfs` 里',
    topics.DETECTIONS: '输出；设 `parser_mode:=1` 且装有该包时发布，找到的每个物体一个框',
    topics.WATCH: '输出，保留最后一条；[持续提问](watch.md)的答案，变化时发布',
    topics.WATCH_EVENTS: '输出；[JSON](watch.md)：每次变化及其概率、时间戳和 `frame_id`',
    topics.ANNOTATED: '输出，有订阅者时；画有方框、点和回答的图片',
    topics.ANNOTATED_COMPRESSED: '输出，有订阅者时；同上，JPEG 格式',
    topics.DIAGNOSTICS: '输出；每秒一次，状态和最近一次的耗时',
    topics.CANCEL: '服务；停止正在生成的回答',
    topics.LLAMA_RESPONSE: '动作，装有该包时提供；与 [llama_ros](llama_ros.md) 相同',
    topics.LLAMA_CHAT: '动作，同上；消息、图片和工具',
    topics.LLAMA_METADATA: '服务，同上；模型的信息',
    topics.LLAMA_TOKENIZE: '服务，同上；文本的 token',
    topics.RESET: '服务；忘掉之前的对话（`conversation:=true` 或 `feed_type:=2`）',
}


def shown(value: Any) -> str:
    """Write a value as a command line takes it."""
    if value in ('', ()):
        return ''
    return f'`{str(value).lower() if isinstance(value, bool) else value}`'


def values_of(item: Field[Any], chinese: bool) -> str:
    """Say which values an option may have."""
    meta = item.metadata
    if meta['choices']:
        return ', '.join(shown(choice) for choice in meta['choices'] if choice != '')
    if meta['low'] is not None:
        return f'{meta["low"]:g} … {meta["high"]:.10g}'
    if isinstance(item.default, bool):
        return '`true`, `false`'
    if isinstance(item.default, tuple):
        return '文本列表' if chinese else 'texts'
    return '文本' if chinese else 'text'


def parameter_rows(chinese: bool) -> list[tuple[str, ...]]:
    """Give the table of parameters, its head first."""
    rows: list[tuple[str, ...]] = [
        ('参数', '默认值', '取值', '可动态修改', '含义')
        if chinese
        else ('parameter', 'default', 'values', 'live', 'what it does')
    ]
    of_engine = {item.name for item in fields(Config)}
    for item in fields(NodeConfig):
        rows.append(
            (
                f'`{item.name}`' + ('' if item.name in of_engine else ' *'),
                shown(item.default),
                values_of(item, chinese),
                '✓' if item.metadata['live'] else '',
                CHINESE[item.name] if chinese else item.metadata['doc'],
            )
        )
    return rows


def topic_rows(chinese: bool) -> list[tuple[str, ...]]:
    """Give the table of topics and services of a node called hobot_vlm, its head first."""
    rows = [('名称', '类型', '说明') if chinese else ('name', 'type', 'what')]
    for topic in topics.ALL:
        name = topic.name.replace('~', '/hobot_vlm')
        rows.append(
            (f'`{name}`', f'`{topic.kind}`', CHINESE_TOPICS[topic] if chinese else topic.doc)
        )
    return rows


#: the tables of docs: what makes their rows
TABLES = {'parameters': parameter_rows, 'topics': topic_rows}
#: the documents that have one, their table, and whether they are Chinese
PLACES = {
    'docs/parameters.md': ('parameters', False),
    'docs/parameters_cn.md': ('parameters', True),
    'docs/node.md': ('topics', False),
    'docs/node_cn.md': ('topics', True),
}


def with_table(text: str, name: str, chinese: bool) -> str:
    """Put a table between its marks in a document."""
    begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f'expected {begin} and {end}')
    head, *body = TABLES[name](chinese)
    lines = ['| ' + ' | '.join(row) + ' |' for row in (head, ('---',) * len(head), *body)]
    return '\n'.join([f'{before}{begin}\n', *lines, f'\n{end}{after}'])


def main() -> None:
    """Write the tables of both languages."""
    for file, (name, chinese) in PLACES.items():
        path = ROOT / file
        text = path.read_text(encoding='utf-8')
        path.write_text(with_table(text, name, chinese), encoding='utf-8')


if __name__ == '__main__':
    main()
