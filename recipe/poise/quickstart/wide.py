"""Problems of the third embedded task: nearly half of them too hard, for the quickstart's model.

Sums of 2 to 12 terms, where the model was shown 3 to 6, and products of 2 and 3: pass rates from nearly always to
never, nearly half of the prompts nearly never solved. So it is where a data set was not made for the model that trains
on it: most groups of rollouts teach nothing.
"""

from recipe.poise.quickstart.tasks import Level, Source
from recipe.poise.quickstart.uneven import Bounded

FEWEST, MOST = 2, 12
SUMS = 0.85
# Partial results stay within the numbers that the model has words for.
ASKED: tuple[Source, ...] = (
    *(Bounded("chain_sum", terms, SUMS / (MOST - FEWEST + 1), -60, 99) for terms in range(FEWEST, MOST + 1)),
    Level("products", 2, (1 - SUMS) / 2),
    Level("products", 3, (1 - SUMS) / 2),
)
