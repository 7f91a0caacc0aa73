//! Listeners beside the process before this one.

use super::*;

fn beside_predecessor() -> Bench {
    let mut recorder = Recorder::new(Arrival::Direct);
    recorder.predecessor_lives = true;
    Bench::new(recorder)
}

#[tokio::test]
async fn beside_its_predecessor_a_listener_serves_once_table_and_rules_are_in_effect() {
    let mut bench = beside_predecessor();
    let log = bench.step(vec![web(), endpoints(true)]).await;
    assert_eq!(
        log,
        [
            "open default/web",
            "publish 1 routes, 1 changed",
            "rules {8080}",
            "open default/web"
        ]
    );
}

#[tokio::test]
async fn who_shares_a_port_after_the_predecessor_ended_is_left_alone_there() {
    let mut bench = beside_predecessor();
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().stranger = true;
    let second = Duration::from_secs(1);
    bench.now += second;
    assert_eq!(
        bench.step(vec![]).await[1..],
        [""; 0],
        "it may be the predecessor"
    );
    bench.programmer.effects_mut().predecessor_lives = false;
    bench.now += second;
    assert_eq!(
        bench.step(vec![]).await[1..],
        [""; 0],
        "its sockets may outlast it"
    );
    for _ in 0..2 {
        bench.now += second;
        assert_eq!(bench.step(vec![]).await[1..], [""; 0], "he may be going");
    }
    bench.now += second;
    assert_eq!(bench.step(vec![]).await[1..], ["close default/web"]);
    bench.now += second;
    assert!(bench.programmer.reopen_due(bench.now));
    assert_eq!(bench.step(vec![]).await[0], "open default/web");
    bench.now += second;
    assert!(
        !bench
            .step(vec![])
            .await
            .contains(&"close default/web".to_owned())
    );
}

#[tokio::test]
async fn whoever_lives_once_there_is_a_table_is_no_stranger() {
    let mut bench = Bench::new(Recorder::new(Arrival::Direct));
    // Nothing is known yet, and nothing claimed.
    bench.programmer.write(bench.now).await;
    bench.programmer.effects_mut().predecessor_lives = true;
    bench.programmer.effects_mut().stranger = true;
    bench.step(vec![web(), endpoints(true)]).await;
    for _ in 0..6 {
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.step(vec![]).await[1..], [""; 0]);
    }
}

#[tokio::test]
async fn sockets_that_close_one_by_one_are_no_strangers() {
    let mut bench = beside_predecessor();
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().predecessor_lives = false;
    for is_seen in [true, true, true, false, true, true, true] {
        bench.programmer.effects_mut().stranger = is_seen;
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.step(vec![]).await[1..], [""; 0]);
    }
}

#[tokio::test]
async fn with_nobody_else_there_a_port_that_was_taken_over_stays_open() {
    let mut bench = beside_predecessor();
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().predecessor_lives = false;
    for _ in 0..4 {
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.step(vec![]).await[1..], [""; 0]);
    }
}

#[tokio::test]
async fn what_a_successor_wrote_is_replaced_once_it_has_ended() {
    let mut bench = Bench::new(Recorder::new(Arrival::Redirected));
    bench.step(vec![web(), endpoints(true)]).await;
    bench.programmer.effects_mut().successor_has_ended = true;
    bench.now += Duration::from_secs(1);
    assert_eq!(bench.step(vec![]).await.len(), 1, "it is found");
    assert_eq!(bench.step(vec![]).await[1..], ["rules {40001}"]);
    assert_eq!(bench.step(vec![]).await.len(), 1, "once");
}
