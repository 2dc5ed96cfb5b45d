"""Requests and responses of all routes; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag


class Strict(BaseModel):
    """A request: no unknown fields, no infinities, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _nothing(value: Any) -> Any:
    if value:
        raise ValueError("is not supported: leave it out")
    return value


Zero = Annotated[float | None, AfterValidator(_nothing), Field(description="Only 0.")]
Nothing = Annotated[dict[str, float] | None, AfterValidator(_nothing), Field(description="Not supported.")]
Seed = Annotated[int | None, Field(ge=-(2**62), lt=2**62)]
Stops = Annotated[str | list[Annotated[str, Field(max_length=256)]] | None, Field(max_length=256)]
Model = Annotated[str, Field(max_length=256)]
SessionName = Annotated[
    str | None, Field(max_length=128, description="Go on with the text of this session, or begin it.")
]
UseHistory = Annotated[bool | None, Field(description="false: the base model alone.")]
ReturnHistory = Annotated[bool, Field(description="Tell which entries moved the prediction.")]
Top = Annotated[int, Field(ge=1, le=50, description="Entries to tell for each outcome.")]


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class Sampling(Strict):
    """What completions and chats have in common."""

    model: Model
    temperature: Annotated[float | None, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float | None, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    n: Annotated[int | None, Field(ge=1, le=64)] = 1
    stop: Stops = None
    seed: Seed = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    presence_penalty: Zero = 0.0
    frequency_penalty: Zero = 0.0
    logit_bias: Nothing = None
    user: str | None = None
    use_history: UseHistory = None
    return_history: ReturnHistory = False
    history_top: Top = 3


def _kind_of_prompt(value: Any) -> str:
    """Which kind of prompt a value is meant to be, so that a long list is compared with no other."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "lists" if isinstance(first, list) else "tokens"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Tag("texts")]
    | Annotated[list[int], Tag("tokens")]
    | Annotated[list[list[int]], Tag("lists")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(Sampling):
    """A text, or several, to go on with."""

    prompt: Prompt | None = None
    max_tokens: Annotated[int | None, Field(ge=0)] = 16
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    echo: bool | None = False
    best_of: int | None = None
    suffix: Annotated[str | None, AfterValidator(_nothing), Field(description="Not supported.")] = None
    session: SessionName = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """A message of a chat."""

    role: Annotated[str, Field(max_length=64)]
    content: str | list[TextPart] | None = None
    name: str | None = None


class ChatRequest(Sampling):
    """A chat to go on with."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Logprobs(BaseModel):
    """Log probabilities of the tokens of a text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    history: list[dict[str, Any]] | None = None


class SessionInfo(BaseModel):
    """A session, and the tokens of its text."""

    id: str
    tokens: int


class Completion(BaseModel):
    """The texts that go on with the prompts."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    session: SessionInfo | None = None


class Answer(BaseModel):
    """A message that was generated."""

    role: str | None = None
    content: str | None = None


class TokenLogprob(BaseModel):
    """Log probability of a token."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class ContentLogprob(TokenLogprob):
    """Log probability of a token of an answer, and of the most probable ones at its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of the tokens of an answer."""

    content: list[ContentLogprob]


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Answer | None = None
    delta: Answer | None = None
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    history: list[dict[str, Any]] | None = None


class Chat(BaseModel):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None


class ModelInfo(BaseModel):
    """A model of the server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "modeling_lle"
    task: str


class ModelList(BaseModel):
    """The models of the server."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class TokenizeRequest(Strict):
    """A text to tokenize, as `prompt` or as `inputs`."""

    model: Model | None = None
    prompt: str | None = None
    inputs: str | None = None
    add_special_tokens: bool = True


class Tokens(BaseModel):
    """Token ids of a text."""

    tokens: list[int]
    count: int


class DetokenizeRequest(Strict):
    """Tokens to write as a text."""

    model: Model | None = None
    tokens: list[int]


class Detokenized(BaseModel):
    """The text of tokens."""

    prompt: str


class TokenizerInfo(BaseModel):
    """The special tokens of a language model."""

    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    chat_template: str | None


class OpenAIErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str | None
    param: str | None = None


class OpenAIError(BaseModel):
    """An error as OpenAI's clients expect it."""

    error: OpenAIErrorBody


class TEIError(BaseModel):
    """An error as clients of Text Embeddings Inference expect it."""

    error: str
    error_type: str


class LibreError(BaseModel):
    """An error as LibreTranslate's clients expect it."""

    error: str
