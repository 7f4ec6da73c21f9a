"""run.json of runs that were written before scores had a name and a direction."""

import json

from run_folders import make_run

from nm2trt.artifacts import RunDocument


def test_an_older_run_is_read_with_its_accuracy(tmp_path):
    make_run(tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    raw = json.loads(path.read_text())
    raw["result"]["test_accuracy"] = raw["result"].pop("test_score")
    for name in ("score_name", "score_better"):
        del raw["result"][name]
    path.write_text(json.dumps(raw))
    result = RunDocument.read(tmp_path / "run").result
    assert (result.score_name, result.score_better, result.test_score) == ("accuracy", "higher", 0.5)
    assert result.score == "accuracy 50.00%"
    assert "test_accuracy" not in json.loads(RunDocument.read(tmp_path / "run").to_json())["result"]
