from rtrec_ray.eventtime.watermark import Watermark, WatermarkOptions

OPTIONS = WatermarkOptions(disorder_ms=5, idle_after_ms=10)


def at_end(mark: Watermark, *sources: str, wall_ms: int) -> None:
    for source in sources:
        mark.looked(source, at_end=True, wall_ms=wall_ms)


def test_it_is_the_minimum_over_sources_less_the_disorder():
    mark = Watermark(["a", "b"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    mark.arrived("b", max_ts_ms=60)
    assert mark.advance(wall_ms=0, now_ms=200) == 55


def test_a_source_that_brought_nothing_and_is_not_idle_holds_it():
    mark = Watermark(["a", "b"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    assert mark.advance(wall_ms=0, now_ms=200) is None


def test_it_never_moves_back_when_an_idle_source_wakes_with_older_events():
    mark = Watermark(["a", "b"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    at_end(mark, "b", wall_ms=0)
    assert mark.advance(wall_ms=10, now_ms=200) == 95
    mark.arrived("b", max_ts_ms=50)
    assert mark.advance(wall_ms=11, now_ms=200) == 95


def test_a_source_is_idle_only_after_the_whole_wait_at_the_end():
    mark = Watermark(["a", "b"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    at_end(mark, "b", wall_ms=0)
    assert mark.advance(wall_ms=9, now_ms=200) is None
    assert mark.advance(wall_ms=10, now_ms=200) == 95


def test_lag_is_stalled_not_idle():
    mark = Watermark(["a", "b"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    at_end(mark, "b", wall_ms=0)
    mark.looked("b", at_end=False, wall_ms=9)
    assert mark.advance(wall_ms=30, now_ms=200) is None
    at_end(mark, "b", wall_ms=39)
    assert mark.advance(wall_ms=45, now_ms=200) is None


def test_when_all_are_idle_it_goes_on_with_the_clock():
    mark = Watermark(["a"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    at_end(mark, "a", wall_ms=0)
    assert mark.advance(wall_ms=10, now_ms=1_000) == 95
    assert mark.advance(wall_ms=20, now_ms=1_040) == 135


def test_going_on_with_the_clock_does_not_overtake_what_happens_now():
    mark = Watermark(["a"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=130)  # 30 ms ahead of the clock
    at_end(mark, "a", wall_ms=0)
    mark.advance(wall_ms=10, now_ms=100)
    assert mark.advance(wall_ms=60, now_ms=150) == 145


def test_it_is_restored_with_what_was_committed():
    mark = Watermark(["a"], options=OPTIONS, value_ms=300, max_ts_ms={"a": 305})
    mark.arrived("a", max_ts_ms=200)
    assert mark.advance(wall_ms=0, now_ms=400) == 300
    assert mark.max_ts_ms("a") == 305


def test_what_comes_without_a_newer_time_does_not_make_it_stand_for_as_long_as_it_has_gone_on():
    mark = Watermark(["a"], options=OPTIONS)
    mark.arrived("a", max_ts_ms=100)
    at_end(mark, "a", wall_ms=0)
    mark.advance(wall_ms=10, now_ms=1_000)
    assert mark.advance(wall_ms=900, now_ms=1_900) == 995
    for dead_or_late in (None, 90):
        mark.arrived("a", max_ts_ms=dead_or_late)
    at_end(mark, "a", wall_ms=900)
    assert mark.advance(wall_ms=910, now_ms=1_910) == 995
    assert mark.advance(wall_ms=920, now_ms=1_920) == 1_005


def test_who_takes_over_goes_on_from_where_it_was_left():
    mark = Watermark(["a"], options=OPTIONS, value_ms=900, max_ts_ms={"a": 305})
    at_end(mark, "a", wall_ms=0)
    assert mark.advance(wall_ms=9, now_ms=5_000) == 900
    assert mark.advance(wall_ms=10, now_ms=5_001) == 900
    assert mark.advance(wall_ms=11, now_ms=5_041) == 940
