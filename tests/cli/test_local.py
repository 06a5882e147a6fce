"""Commands that need nothing but this machine."""

from cli.running import run, told


def test_points_lists_the_insertion_points_of_a_model():
    result = run("points", "resnet18")
    lines = [line.split() for line in result.output.splitlines()]
    assert result.exit_code == 0
    assert lines[0] == ["name", "channels", "reduction", "layout", "grid"]
    assert lines[1] == ["input", "3", "1", "NCHW", "224x224"]
    assert ["layer3.1", "256", "16", "NCHW", "14x14"] in lines
    assert lines[-1] == ["global_pool", "512", "224", "NC", "1x1"]


def test_points_of_a_model_with_arguments_as_json():
    found = told("points", "resnet18", "--model-args", '{"channels": [8, 16, 24, 32]}')
    by_name = {point["name"]: point for point in found}
    assert (by_name["layer3.1"]["channels"], by_name["layer3.1"]["layout"]) == (24, "NCHW")
    assert by_name["input"]["grid"] == [224, 224]
    assert len(found) == len(run("points", "resnet18").output.splitlines()) - 1
