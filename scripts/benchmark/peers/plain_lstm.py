"""The usual language model with nn.LSTM, a tied output layer and a plain cross entropy."""

from torch import Tensor, nn


class PlainLSTM(nn.Module):
    """A language model of torch's own modules; its state is carried from call to call.

    Args:
        vocabulary: V.
        width: D.
        layers: Number of layers.
        between: Dropout between layers.
        dropout: Dropout of embeddings and of the last layer's output.
    """

    def __init__(
        self, vocabulary: int, width: int, layers: int = 2, between: float = 0.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)  # torch's own is for embeddings that are not tied
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, vocabulary)
        self.output.weight = self.embedding.weight
        self.state: tuple[Tensor, Tensor] | None = None

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (B, T, V) after `ids` (B, T), which continue those of the call before."""
        states, (h, c) = self.lstm(self.dropout(self.embedding(ids)), self.state)
        self.state = (h.detach(), c.detach())
        return self.output(self.dropout(states))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of `targets` (B, T) after `ids` (B, T)."""
        return nn.functional.cross_entropy(self.logits(ids).flatten(0, 1), targets.flatten())
