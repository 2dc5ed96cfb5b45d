"""The table of tasks: what it says is so."""

import pytest
import transformers

import modeling_lle
from modeling_lle.configuration_sections import OPTIONAL
from modeling_lle.tasks import TASKS, Task, task_of
from modeling_lle.training.recipe import ARGUMENTS

IDS = [task.name for task in TASKS]


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_its_names_are_those_of_classes_and_sections(task: Task) -> None:
    model = getattr(modeling_lle, task.model)
    assert model.config_class.model_type == task.model_type
    assert model.auto_class == task.auto_class
    assert hasattr(transformers, task.auto_class)
    assert set(task.sections) <= set(OPTIONAL)
    module, _, name = task.pipeline.rpartition(".")
    assert getattr(modeling_lle, name).__module__ == module


def test_a_task_is_known_by_its_class() -> None:
    assert [task_of(task.model) for task in TASKS] == list(TASKS)
    with pytest.raises(ValueError, match="some/folder holds a model of the class LLEModel, not one of LLEForCausalLM"):
        task_of("LLEModel", "some/folder")


def test_tasks_with_commands_can_be_trained() -> None:
    assert set(ARGUMENTS) == {task.name for task in TASKS if task.has_commands}
