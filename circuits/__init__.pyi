from .config import ExperimentConfig as ExperimentConfig
from .config import NamedConfig as NamedConfig
from .config import load_config as load_config
from .experiments import EXPERIMENTS as EXPERIMENTS
from .experiments import Experiment as Experiment
from .runner import Finished as Finished
from .runner import run as run

DISTRIBUTION: str
