"""The paper's form of the probe in scikit-learn, batched: what the probe is compared with.

Shapes: N rows, F features.
"""

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler


class Peer:
    """Randomised PCA of 32 and 64 directions, StandardScaler, Ridge(100), clip to [0, 1].

    With weights, scaler and ridge take them as `sample_weight` (PCA has none), with a mean of one.
    """

    def __init__(self, state_size: int):
        self.slices = (slice(0, state_size), slice(state_size, 2 * state_size), slice(2 * state_size, None))

    def _reduce(self, x_NF: np.ndarray) -> np.ndarray:
        parts = [pca.transform(x_NF[:, block]) for pca, block in zip(self.pcas, self.slices, strict=False)]
        return np.concatenate([*parts, x_NF[:, self.slices[2]]], axis=1)

    def fit(self, x_NF: np.ndarray, y_N: np.ndarray, weight_N: np.ndarray | None = None) -> "Peer":
        if weight_N is not None:
            weight_N = weight_N / weight_N.mean()
        self.pcas = [
            PCA(count, svd_solver="randomized", random_state=42).fit(x_NF[:, block])
            for count, block in zip((32, 64), self.slices, strict=False)
        ]
        features = self._reduce(x_NF)
        self.scaler = StandardScaler().fit(features, sample_weight=weight_N)
        self.ridge = Ridge(alpha=100.0).fit(self.scaler.transform(features), y_N, sample_weight=weight_N)
        return self

    def predict(self, x_NF: np.ndarray) -> np.ndarray:
        return np.clip(self.ridge.predict(self.scaler.transform(self._reduce(x_NF))), 0, 1)
