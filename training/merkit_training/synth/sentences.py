"""Sentences in Chinese and English whose words carry emotion, from a small grammar.

A text encoder can only be tested on sentences it has not read. So every string belongs to
exactly one pool, by its hash: pools share the vocabulary and never a sentence. A class's own
phrases name its emotion; the phrases of a pair (`happy|surprise`) fit two classes equally well.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from merkit_training.synth.model import CATEGORIES

POOLS: dict[str, range] = {
    "train": range(8),  # sentences and utterances that encoders train on
    "val": range(8, 9),
    "clips/train": range(9, 11),
    "clips/val": range(11, 12),
    "clips/test_multi": range(12, 13),
    "clips/test_semi": range(13, 14),
    "clips/test_noise": range(14, 15),
    "clips/unlabelled": range(15, 16),
}
"""Which of the 16 buckets of sha256(text) each pool owns."""


@dataclass(frozen=True)
class Sentence:
    """A sentence and the category (of CATEGORIES) whose phrases it uses."""

    text: str
    language: str  # zh or en
    category: int


TOPICS = {
    "en": (
        "the exam", "the new job", "the meeting", "my sister", "our team", "the letter",
        "the house", "the trip", "the phone call", "the game", "my teacher", "the doctor",
        "the car", "the party", "our neighbour", "the report", "the train", "the answer",
        "the wedding", "the project", "my old friend", "the weather", "the dinner", "the money",
    ),
    "zh": (
        "考试", "新工作", "会议", "妹妹", "球队", "那封信", "房子", "旅行", "电话", "比赛",
        "老师", "医生", "汽车", "聚会", "邻居", "报告", "火车", "答案", "婚礼", "项目", "老朋友",
        "天气", "晚饭", "奖金",
    ),
}  # fmt: skip
TIMES = {
    "en": ("today", "this morning", "tonight", "again", "this week", "right now", "this time",
           "since Monday"),
    "zh": ("今天", "早上", "今晚", "刚才", "这周", "现在", "这次", "昨天"),
}  # fmt: skip
OPENERS = {
    "en": ("", "", "well", "you know", "look", "oh", "listen"),
    "zh": ("", "", "你看", "其实", "哎", "那个", "说起来"),
}

PHRASES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "neutral": (
            "I read something about {x} {t}", "they talked about {x} {t}",
            "there is a note on {x} {t}", "we will look at {x} {t}",
            "he mentioned {x} {t}", "the list includes {x} {t}",
            "I wrote two lines about {x} {t}", "she asked about {x} {t}",
        ),
        "angry": (
            "I am furious about {x} {t}", "I am so angry about {x} {t}",
            "stop lying to me about {x} {t}", "{x} makes me mad {t}",
            "I hate how you ruined {x} {t}", "how dare you touch {x} {t}",
            "I am sick and tired of {x} {t}", "shut up about {x} {t}",
        ),
        "happy": (
            "I am so happy about {x} {t}", "I really love {x} {t}",
            "{x} was wonderful {t}", "I am delighted with {x} {t}",
            "we laughed and enjoyed {x} {t}", "what a great joy, {x} {t}",
            "{x} made me smile {t}", "I am thrilled about {x} {t}",
        ),
        "sad": (
            "I cried about {x} {t}", "I feel so sad about {x} {t}",
            "I miss {x} so much {t}", "{x} broke my heart {t}",
            "I lost all hope for {x} {t}", "I am lonely without {x} {t}",
            "it hurts to remember {x} {t}", "I am in tears over {x} {t}",
        ),
        "worried": (
            "I am worried about {x} {t}", "I am afraid for {x} {t}",
            "what if {x} goes wrong {t}", "I am nervous about {x} {t}",
            "{x} keeps me awake {t}", "I fear the worst for {x} {t}",
            "I am anxious about {x} {t}", "I hope {x} is safe {t}",
        ),
        "surprise": (
            "wow, look at {x} {t}", "I never expected {x} {t}",
            "what a surprise, {x} {t}", "{x} came out of nowhere {t}",
            "I am amazed by {x} {t}", "really, {x} {t}",
            "nobody told me about {x} {t}", "I am shocked to see {x} {t}",
        ),
        "neutral|happy": (
            "{x} went quite well {t}", "I like {x} well enough {t}",
            "we finished {x} {t}", "{x} is fine {t}", "it was nice to see {x} {t}",
        ),
        "happy|surprise": (
            "we actually won {x} {t}", "I can't believe our luck with {x} {t}",
            "{x} is finally here {t}", "they gave me {x} {t}", "guess what, {x} {t}",
        ),
        "surprise|angry": (
            "you did what to {x} {t}", "are you serious about {x} {t}",
            "how could you sell {x} {t}", "what on earth happened to {x} {t}",
            "are you kidding me with {x} {t}",
        ),
        "angry|sad": (
            "you never cared about {x} {t}", "you broke your promise on {x} {t}",
            "it is not fair about {x} {t}", "they took {x} from me {t}",
            "nobody listens to me about {x} {t}",
        ),
        "sad|worried": (
            "{x} is getting worse {t}", "we may lose {x} {t}", "I can't sleep over {x} {t}",
            "there is no news from {x} {t}", "I don't know how to save {x} {t}",
        ),
        "worried|neutral": (
            "we should check {x} {t}", "I am waiting for {x} {t}",
            "we must decide about {x} {t}", "let me think about {x} {t}",
            "{x} is not settled {t}",
        ),
    },
    "zh": {
        "neutral": (
            "{t}看到一些{x}的资料", "{t}他们谈到了{x}", "{t}记录里写着{x}", "{t}我们要讨论{x}",
            "{t}他提到了{x}的事", "{t}名单上有{x}", "{t}我写了几句{x}的话", "{t}她问起了{x}",
        ),
        "angry": (
            "{t}的{x}让我很生气", "{t}{x}真是气死我了", "{t}别再拿{x}骗我", "{t}我受够了{x}",
            "{t}你凭什么毁了{x}", "{t}我恨透了{x}", "{t}少跟我提{x}", "{t}{x}太可恶了",
        ),
        "happy": (
            "{t}的{x}让我好高兴", "{t}我真喜欢{x}", "{t}{x}太棒了", "{t}我为{x}感到开心",
            "{t}大家因为{x}笑得很开心", "{t}{x}真让人快乐", "{t}{x}带来了幸福", "{t}{x}美好极了",
        ),
        "sad": (
            "{t}我因为{x}哭了", "{t}的{x}让我很难过", "{t}我好想念{x}", "{t}{x}伤透了我的心",
            "{t}我对{x}绝望了", "{t}没有{x}我很孤单", "{t}想起{x}就心痛", "{t}为了{x}我流泪了",
        ),
        "worried": (
            "{t}我很担心{x}", "{t}我为{x}感到害怕", "{t}万一{x}出错怎么办", "{t}{x}让我很紧张",
            "{t}{x}让我睡不着觉", "{t}我怕{x}出事", "{t}我对{x}很焦虑", "{t}但愿{x}平安",
        ),
        "surprise": (
            "{t}哇快看{x}", "{t}我没想到会有{x}", "{t}{x}真是个惊喜", "{t}{x}突然就来了",
            "{t}{x}让我大吃一惊", "{t}真的吗是{x}", "{t}没人告诉我{x}的事", "{t}竟然会是{x}",
        ),
        "neutral|happy": (
            "{t}{x}还算顺利", "{t}{x}挺不错的", "{t}我们做完了{x}", "{t}{x}还可以",
            "{t}见到{x}挺好",
        ),
        "happy|surprise": (
            "{t}居然赢了{x}", "{t}{x}终于来了", "{t}不敢相信有{x}", "{t}他们给了我{x}",
            "{t}你猜怎么着有{x}",
        ),
        "surprise|angry": (
            "{t}你把{x}怎么了", "{t}{x}你是认真的吗", "{t}你怎么能卖掉{x}", "{t}{x}到底怎么回事",
            "{t}拿{x}开什么玩笑",
        ),
        "angry|sad": (
            "{t}你从来不关心{x}", "{t}{x}你说话不算数", "{t}{x}太不公平了", "{t}他们抢走了{x}",
            "{t}没人听我说{x}",
        ),
        "sad|worried": (
            "{t}{x}越来越糟了", "{t}可能要失去{x}", "{t}{x}一直没有消息", "{t}不知道怎么挽回{x}",
            "{t}{x}让我一夜没睡",
        ),
        "worried|neutral": (
            "{t}应该再查查{x}", "{t}我还在等{x}", "{t}要决定{x}的事", "{t}让我想想{x}",
            "{t}{x}还没定下来",
        ),
    },
}  # fmt: skip


def bucket(text: str) -> int:
    """Which of the 16 buckets a sentence falls into."""
    return hashlib.sha256(text.encode()).digest()[0] % 16


def compose(rng: np.random.Generator, category: int, language: str, pool: str) -> Sentence:
    """A random sentence of a category that belongs to `pool` (a key of POOLS)."""
    phrases = PHRASES[language][CATEGORIES[category]]
    parts = (phrases, TOPICS[language], TIMES[language], OPENERS[language])
    while True:
        phrase, topic, time, opener = (options[rng.integers(len(options))] for options in parts)
        text = phrase.format(x=topic, t=time)
        gap = ", " if language == "en" else "，"
        text = f"{opener}{gap}{text}" if opener else text
        if bucket(text) in POOLS[pool]:
            return Sentence(text, language, category)
