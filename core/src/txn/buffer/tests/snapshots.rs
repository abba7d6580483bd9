//! The view from before the first stage, and cursors.

use super::*;

type Pair = (Vec<u8>, Vec<u8>);

/// All pages of a cursor, each fetched after `between` has had its turn.
fn drain(
    buffer: &mut MemBuffer,
    cursor: &mut Cursor,
    size: usize,
    mut between: impl FnMut(&mut MemBuffer),
) -> Vec<Pair> {
    let mut all = Vec::new();
    while !cursor.is_finished() {
        let page = buffer.page(cursor, size).unwrap();
        all.extend(
            page.into_iter()
                .map(|got| (got.key.to_vec(), got.value.to_vec())),
        );
        between(buffer);
    }
    assert_eq!(buffer.page(cursor, size).unwrap(), [], "an end stays one");
    all
}

/// Snapshots of a buffer without stage are gone after the next write; one from before a stage
/// shows the same whatever the stage does.
#[test]
fn snapshot_get_iter() {
    let mut buffer = MemBuffer::new();
    for i in 0..=50 {
        buffer.set(&[0], &[i]).unwrap();
        let snapshot = buffer.snapshot();
        assert_eq!(
            buffer.get_at(&snapshot, &[0]).unwrap().unwrap(),
            [i].as_slice()
        );
        buffer.set(&[1], &[i]).unwrap();
        assert!(!buffer.is_valid(&snapshot));
        assert!(buffer.get_at(&snapshot, &[0]).is_err());
        assert!(buffer.iter_at(&snapshot, ..).is_err());
        let mut cursor = buffer.cursor_at(&snapshot, .., Direction::Forward);
        assert!(buffer.page(&mut cursor, 1).is_err());
    }
    let before = buffer.snapshot();
    let stage = buffer.staging();
    assert_eq!(before, buffer.snapshot());
    for i in 51..100 {
        buffer.set(&[0], &[i]).unwrap();
        buffer.set(&[1], &[i]).unwrap();
        buffer.delete(&[2]).unwrap();
        let pairs: Vec<_> = buffer.iter_at(&before, ..).unwrap().collect();
        assert_eq!(pairs, [(&[0][..], &[50][..]), (&[1], &[50])]);
        let pairs: Vec<_> = buffer.iter_at(&before, ..).unwrap().rev().collect();
        assert_eq!(pairs, [(&[1][..], &[50][..]), (&[0], &[50])]);
        assert_eq!(buffer.get_at(&before, &[2]).unwrap(), None);
    }
    buffer.release(stage).unwrap();
    assert!(!buffer.is_valid(&before));

    buffer.reset();
    assert!(!buffer.is_valid(&before));
    buffer
        .update_flags(&[255], &[FlagOp::SetPresumeKeyNotExists])
        .unwrap();
    for i in 1..50 {
        buffer.set(&[2 * i], &[2 * i]).unwrap();
    }
    let stage = buffer.staging();
    for i in 0..100 {
        buffer.set(&[i], &[2 * i]).unwrap();
    }
    let snapshot = buffer.snapshot();
    for (key, value) in [(2, Some(&[2][..])), (1, None), (254, None), (255, None)] {
        assert_eq!(buffer.get_at(&snapshot, &[key]).unwrap().as_deref(), value);
    }
    let even: Vec<[u8; 1]> = (1..50).map(|i| [2 * i]).collect();
    assert!(
        buffer
            .iter_at(&snapshot, ..)
            .unwrap()
            .eq(even.iter().map(|k| (&k[..], &k[..])))
    );
    let backwards = even.iter().rev().map(|k| (&k[..], &k[..]));
    assert!(buffer.iter_at(&snapshot, ..).unwrap().rev().eq(backwards));
    buffer.release(stage).unwrap();
}

#[test]
fn what_ends_a_snapshot() {
    type Act = fn(&mut MemBuffer);
    // With one stage open: whether the snapshot survives.
    let table: [(&str, bool, Act); 8] = [
        ("a write", true, |b| b.set(b"a", b"2").unwrap()),
        ("flags", true, |b| b.update_flags(b"a", &[]).unwrap()),
        ("a stage", true, |b| {
            let stage = b.staging();
            b.set(b"b", b"2").unwrap();
            b.cleanup(stage).unwrap();
            let stage = b.staging();
            b.release(stage).unwrap();
        }),
        ("a checkpoint", true, |b| {
            let checkpoint = b.checkpoint();
            b.set(b"b", b"2").unwrap();
            b.revert_to(checkpoint).unwrap();
        }),
        ("a seal", true, MemBuffer::seal),
        ("release", false, |b| {
            b.release(StageHandle::at_depth(1)).unwrap()
        }),
        ("cleanup", false, |b| {
            b.cleanup(StageHandle::at_depth(1)).unwrap()
        }),
        ("reset", false, MemBuffer::reset),
    ];
    for (what, survives, act) in table {
        let mut buffer = MemBuffer::new();
        buffer.set(b"a", b"1").unwrap();
        let stage = buffer.staging();
        let snapshot = buffer.snapshot();
        act(&mut buffer);
        assert_eq!(buffer.is_valid(&snapshot), survives, "{what}");
        if survives {
            let value = buffer.get_at(&snapshot, b"a").unwrap();
            assert_eq!(value.as_deref(), Some(&b"1"[..]), "{what}");
        }
        let _ = stage;
    }
}

/// Writes that split nodes of the index, between pages of every size.
#[test]
fn batched_snapshot_iter_and_snapshot_reader_with_write() {
    for count in [3, 4, 16, 17, 48, 64, 200_u8] {
        for size in [1, 3, 32, 4096] {
            for direction in [Direction::Forward, Direction::Reverse] {
                let mut buffer = MemBuffer::new();
                for i in 0..count {
                    buffer.set(&[0, i], &[0, i]).unwrap();
                }
                let stage = buffer.staging();
                let snapshot = buffer.snapshot();
                let mut cursor = buffer.cursor_at(&snapshot, [0, 0]..[0, 255], direction);
                let mut turn = 0;
                let got = drain(&mut buffer, &mut cursor, size, |buffer| {
                    turn += 1;
                    buffer.set(&[0, count], &[0, count]).unwrap();
                    for i in 0..count {
                        buffer.set(&[0, i, turn], &[1, i]).unwrap();
                        buffer.set(&[0, i], &[turn]).unwrap();
                    }
                });
                let mut expected: Vec<Pair> =
                    (0..count).map(|i| (vec![0, i], vec![0, i])).collect();
                if direction == Direction::Reverse {
                    expected.reverse();
                }
                assert_eq!(got, expected);
                buffer.release(stage).unwrap();
            }
        }
    }
}

#[test]
fn batched_snapshot_iter_edge_case() {
    let mut buffer = MemBuffer::new();
    let with_prefixes = [vec![2], vec![2, 1], vec![2, 1, 1], vec![2, 1, 1, 1]];
    for key in with_prefixes
        .iter()
        .chain(&[vec![1, 0], vec![1, 2], vec![1, 4], vec![1, 6]])
    {
        buffer.set(key, key).unwrap();
    }
    let stage = buffer.staging();
    let snapshot = buffer.snapshot();
    let mut scan = |from: &[u8], to: &[u8], direction| -> Vec<Vec<u8>> {
        let mut cursor = buffer.cursor_at(&snapshot, from..to, direction);
        let all = drain(&mut buffer, &mut cursor, 2, |_| {});
        all.into_iter().map(|(key, _)| key).collect()
    };
    use Direction::{Forward, Reverse};
    let none: [Vec<u8>; 0] = [];
    assert_eq!(scan(&[1], &[1], Forward), none);
    assert_eq!(scan(&[0], &[1], Forward), none);
    assert_eq!(scan(&[2], &[1], Reverse), none);
    assert_eq!(scan(&[1, 2], &[1, 3], Forward), [[1, 2]]);
    assert_eq!(scan(&[1, 2], &[1, 9], Forward), [[1, 2], [1, 4], [1, 6]]);
    assert_eq!(scan(&[1, 0], &[1, 6], Reverse), [[1, 4], [1, 2], [1, 0]]);
    assert_eq!(scan(&[2], &[3], Forward), with_prefixes);
    let mut backwards = with_prefixes.clone();
    backwards.reverse();
    assert_eq!(scan(&[2], &[3], Reverse), backwards);
    let mut cursor = buffer.cursor_at(&snapshot, .., Forward);
    buffer.page(&mut cursor, 1).unwrap();
    buffer.release(stage).unwrap();
    let gone = buffer.page(&mut cursor, 1).unwrap_err();
    assert_eq!(gone.kind(), crate::error::ErrorKind::InvalidArgument);
}

#[test]
fn a_cursor_notices_writes_unless_it_is_lenient() {
    let mut buffer = filled(10);
    let mut strict = buffer.cursor(.., Direction::Forward);
    let mut lenient = strict.clone().across_writes();
    for cursor in [&mut strict, &mut lenient] {
        assert_eq!(buffer.page(cursor, 4).unwrap().len(), 4);
    }
    let start = buffer.checkpoint();
    assert_eq!(
        buffer.page(&mut strict.clone(), 4).unwrap().len(),
        4,
        "that is no write"
    );
    buffer.set(&n(1), b"passed").unwrap();
    buffer.set(&n(6), b"ahead").unwrap();
    buffer.delete(&n(7)).unwrap();
    assert!(buffer.page(&mut strict, 4).is_err());
    let page = buffer.page(&mut lenient, 4).unwrap();
    assert_eq!(page[2].value, b"ahead".as_slice());
    assert!(page[3].is_delete());
    buffer.revert_to(start).unwrap();
    assert!(buffer.page(&mut strict, 4).is_err());
    assert_eq!(buffer.page(&mut lenient, 4).unwrap().len(), 2);
    assert!(lenient.is_finished());
}
