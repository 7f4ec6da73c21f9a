"""The second half of `make test` collects only files that name the mark: none that carries it may be missed."""

from tensorrt_double.run_marked import find_marked_files


def test_every_marked_test_is_in_a_file_that_names_the_mark(request):
    files = set(find_marked_files())
    assert files
    assert {item.path for item in request.session.items if item.get_closest_marker("tensorrt")} <= files
