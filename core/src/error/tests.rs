use super::*;

#[test]
fn an_error_is_small() {
    assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
}

#[test]
fn what_may_be_tried_again_is_never_undetermined() {
    let conflict =
        Error::WriteConflict(Box::new(WriteConflict::new("k".into(), 5.into(), 7.into())));
    assert!(conflict.is_retryable() && conflict.is_conflict() && !conflict.is_undetermined());
    let lost = Error::Undetermined(Box::new(Undetermined::new(
        5.into(),
        9.into(),
        conflict.clone(),
    )));
    assert!(lost.is_undetermined() && !lost.is_retryable() && !lost.is_conflict());
}

#[test]
fn texts_name_key_cause_and_next_step() {
    let conflict = Error::WriteConflict(Box::new(WriteConflict::new(
        "k\n".into(),
        5.into(),
        7.into(),
    )));
    assert_eq!(
        conflict.to_string(),
        "write conflict on key k\\n: the transaction began at 5, another one that began at 7 \
         holds a lock (no reason given); begin again"
    );
    let gone = Error::Exhausted(Box::new(Exhausted::new(
        BackoffKind::RegionMiss,
        3,
        Duration::from_millis(14),
        Error::Closed,
        vec![],
    )));
    assert_eq!(gone.kind(), ErrorKind::Unavailable);
    assert_eq!(
        gone.to_string(),
        "region is unavailable: gave up after 3 attempts and 14ms of waiting, mostly for \
         regionMiss; last cause: the client is closed"
    );
}
