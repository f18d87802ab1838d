from .config import ExperimentConfig as ExperimentConfig
from .config import NamedConfig as NamedConfig
from .config import load_config as load_config
from .experiments import EXPERIMENTS as EXPERIMENTS
from .experiments import Experiment as Experiment
from .runner import Finished as Finished
from .runner import run as run
from .tasks.ability import Ability as Ability
from .tasks.ability import task_ability as task_ability
from .tasks.encode import encode_task as encode_task
from .tasks.item import Item as Item
from .tasks.make import make_task as make_task
from .tasks.own import read_task as read_task
from .tasks.task import Task as Task
from .tasks.task_batch import TaskBatch as TaskBatch
from .tasks.tokenised import known_words as known_words

DISTRIBUTION: str
