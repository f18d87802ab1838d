"""Doubt: bootstrap intervals, nulls by permutation and by matched random heads, and rank agreement.

Everything here is arithmetic on arrays and knows no model.
"""

from .intervals import Interval as Interval
from .intervals import bootstrap_means as bootstrap_means
from .intervals import mean_interval as mean_interval
from .nulls import FEWEST_SETS as FEWEST_SETS
from .nulls import MOST_SETS as MOST_SETS
from .nulls import Discoveries as Discoveries
from .nulls import MatchedSets as MatchedSets
from .nulls import NullComparison as NullComparison
from .nulls import benjamini_hochberg as benjamini_hochberg
from .nulls import compare_with_null as compare_with_null
from .nulls import largest_effect_p as largest_effect_p
from .nulls import matched_random_sets as matched_random_sets
from .nulls import p_value as p_value
from .ranks import Agreement as Agreement
from .ranks import RankStatistics as RankStatistics
from .ranks import Resampling as Resampling
from .ranks import rank_agreement as rank_agreement
from .ranks import rank_statistics as rank_statistics
from .ranks import shared_resampling as shared_resampling
