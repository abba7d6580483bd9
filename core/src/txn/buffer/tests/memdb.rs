//! Reads, writes, limits, sizes, the end of the values.

use super::*;

#[test]
fn get_set() {
    let buffer = filled(10_000);
    check_pairs(&buffer, (0..10_000).map(|i| (i, i)));
    assert_eq!(buffer.get(&n(10_000)).unwrap(), None);
}

#[test]
fn kv_get_set() {
    let mut buffer = MemBuffer::new();
    for i in [0, 2] {
        buffer
            .set(ten_digits(i).as_bytes(), ten_digits(i).as_bytes())
            .unwrap();
    }
    for i in [0, 2] {
        let key = ten_digits(i);
        assert_eq!(
            buffer.get_ref(key.as_bytes()).unwrap(),
            Some(key.as_bytes())
        );
    }
}

#[test]
fn key_value_oversize() {
    let mut buffer = MemBuffer::new();
    let (longest, too_long) = (vec![0; KEY_SIZE_MAX], vec![0; KEY_SIZE_MAX + 1]);
    buffer.set(&longest, &too_long).unwrap();
    let refused = Error::KeyTooLarge {
        size: 65_536,
        limit: 65_535,
    };
    assert_eq!(buffer.set(&too_long, &longest), Err(refused.clone()));
    assert_eq!(buffer.delete(&too_long), Err(refused.clone()));
    assert_eq!(buffer.update_flags(&too_long, &[]), Err(refused));
    assert_eq!((buffer.len(), buffer.size()), (1, 65_535 + 65_536));
    assert_eq!(buffer.get(&too_long).unwrap(), None, "asking is no error");
}

#[test]
fn buffer_limit() {
    let mut buffer = MemBuffer::new();
    buffer.set_limits(500, 1000);
    let entry_too_large = |size| Err(Error::EntryTooLarge { size, limit: 500 });
    assert_eq!(buffer.set(b"x", &[0; 500]), entry_too_large(501));
    buffer.set(b"x", &[0; 499]).unwrap();
    assert_eq!(buffer.set(b"yz", &[0; 499]), entry_too_large(501));
    buffer.delete(&[0; 499]).unwrap();
    assert_eq!(buffer.size(), 999);

    // What makes the buffer too large is stored all the same, unless it was only tried.
    let too_large = Err(Error::TransactionTooLarge {
        size: 1499,
        limit: 1000,
    });
    assert_eq!(buffer.try_delete(&[0; 500]), too_large);
    assert_eq!((buffer.len(), buffer.size()), (2, 999));
    let stage = buffer.staging();
    assert_eq!(buffer.delete(&[0; 500]), too_large);
    assert_eq!((buffer.len(), buffer.size()), (3, 1499));
    buffer
        .update_flags(b"flags", &[FlagOp::SetKeyLocked])
        .unwrap();
    buffer.cleanup(stage).unwrap();
    assert_eq!((buffer.len(), buffer.size()), (3, 999 + 5));

    // A value that replaces a longer one makes the buffer smaller.
    buffer.set_limits(0, 1004);
    buffer.try_set(b"x", &[0; 499]).unwrap();
    assert!(buffer.try_set(b"x", &[0; 500]).is_err());
    buffer.set_limits(0, 0);
    buffer.try_set(b"x", &[0; 5000]).unwrap();
}

#[test]
fn an_empty_value_is_refused_before_anything_else() {
    let mut buffer = MemBuffer::new();
    buffer.set_limits(1, 1);
    let key = vec![b'k'; KEY_SIZE_MAX + 1];
    let empty = |key: &[u8]| Err(Error::EmptyValue { key: key.into() });
    assert_eq!(buffer.set(&key, b""), empty(&key));
    buffer.discard_values();
    assert_eq!(buffer.set(b"k", b""), empty(b"k"));
    assert_eq!(buffer.set(b"k", b"v"), Err(Error::TransactionEnded));
}

/// The states of an entry, and what each read says of it.
#[test]
fn states_of_an_entry() {
    let mut buffer = MemBuffer::new();
    buffer
        .update_flags(b"flags", &[FlagOp::SetAssertNone])
        .unwrap();
    buffer.delete(b"deleted").unwrap();
    buffer.set(b"", b"value of the empty key").unwrap();
    let stage = buffer.staging();
    buffer.set(b"undone", b"1").unwrap();
    buffer.cleanup(stage).unwrap();

    let value = b"value of the empty key";
    let none = Some(KeyFlags::EMPTY);
    type Line = (&'static [u8], Option<&'static [u8]>, Option<KeyFlags>);
    let table: [Line; 5] = [
        (b"absent", None, None),
        (b"undone", None, None),
        (b"flags", None, none),
        (b"deleted", Some(b""), none),
        (b"", Some(value), none),
    ];
    for (key, expected, flags) in table {
        assert_eq!(buffer.get_ref(key).unwrap(), expected, "{key:?}");
        assert_eq!(buffer.flags(key), flags, "{key:?}");
    }
    assert_eq!(buffer.len(), 3);
    assert_eq!(buffer.size(), value.len() + 7 + 5);
    assert_eq!(keys(buffer.iter(..)), [&b""[..], b"deleted"]);
    assert_eq!(
        keys(buffer.iter_with_flags(..)),
        [&b""[..], b"deleted", b"flags"]
    );
    let batch = buffer.batch_get(table.map(|(key, ..)| key)).unwrap();
    assert!(
        batch
            .iter()
            .map(Option::as_deref)
            .eq(table.map(|(_, value, _)| value))
    );

    // Flags written again are counted once.
    buffer
        .update_flags(b"flags", &[FlagOp::SetAssertNone])
        .unwrap();
    assert_eq!((buffer.len(), buffer.size()), (3, value.len() + 12));
}

#[test]
fn overwrite() {
    let mut buffer = filled(10_000);
    let size = buffer.size();
    for i in (0..10_000).step_by(3) {
        buffer.set(&n(i), &n(i * 10)).unwrap();
    }
    assert_eq!((buffer.len(), buffer.size()), (10_000, size));
    check_pairs(
        &buffer,
        (0..10_000).map(|i| (i, if i % 3 == 0 { i * 10 } else { i })),
    );
}

#[test]
fn update_inplace() {
    let mut buffer = MemBuffer::new();
    for len in [100, 4096] {
        buffer.set(b"k", &vec![0; len]).unwrap();
        let (mem, used) = (buffer.mem(), buffer.used());
        for i in 0..=255 {
            buffer.set(b"k", &vec![i; len]).unwrap();
        }
        assert_eq!(buffer.get(b"k").unwrap().unwrap(), vec![255; len]);
        assert_eq!((buffer.mem(), buffer.used()), (mem, used));
    }
}

#[test]
fn value_larger_than_a_block() {
    let mut buffer = MemBuffer::new();
    for (key, len) in [1, 4096, 3000, 1 << 20, 5, 80 << 20]
        .into_iter()
        .enumerate()
    {
        buffer.set(&[key as u8], &vec![key as u8 + 1; len]).unwrap();
        assert_eq!(
            buffer.get_ref(&[key as u8]).unwrap(),
            Some(&vec![key as u8 + 1; len][..])
        );
    }
    let size = (128 << 20) - 19 + 1;
    assert_eq!(
        buffer.set(b"k", &vec![1; size - 1]),
        Err(Error::EntryTooLarge {
            size,
            limit: VALUE_SIZE_MAX
        })
    );
}

#[test]
fn flag() {
    let mut buffer = MemBuffer::new();
    buffer
        .set_with_flags(&[0], &[0], &[FlagOp::SetPresumeKeyNotExists])
        .unwrap();
    buffer
        .set_with_flags(&[1], &[1], &[FlagOp::SetKeyLocked])
        .unwrap();
    let seen: Vec<_> = buffer
        .iter(..)
        .map(|entry| (entry.key()[0], entry.flags()))
        .collect();
    let presumed = KeyFlags::EMPTY.apply(&[FlagOp::SetPresumeKeyNotExists]);
    assert_eq!(seen, [(0, presumed), (1, KeyFlags::LOCKED)]);
    assert!(buffer.presumes_not_exists(&[0]) && !buffer.presumes_not_exists(&[1]));
    assert!(
        !buffer.presumes_not_exists(&[2]),
        "an unknown key is not presumed absent"
    );
}

#[test]
fn flag_only_key() {
    let mut buffer = MemBuffer::new();
    buffer.update_flags(&[0], &[FlagOp::SetAssertNone]).unwrap();
    assert_eq!(buffer.flags(&[0]), Some(KeyFlags::EMPTY));
    assert_eq!(buffer.get(&[0]).unwrap(), None);
}

#[test]
fn unset_temporary_flag() {
    let constraint = [FlagOp::SetNeedConstraintCheckInPrewrite];
    let needs = |buffer: &MemBuffer| {
        buffer
            .flags(&[1])
            .unwrap()
            .contains(KeyFlags::NEED_CONSTRAINT_CHECK_IN_PREWRITE)
    };
    let mut buffer = MemBuffer::new();
    buffer.set_with_flags(&[1], &[2], &constraint).unwrap();
    assert!(needs(&buffer));
    buffer.update_flags(&[1], &[FlagOp::SetKeyLocked]).unwrap();
    assert!(needs(&buffer), "only a value clears it");
    buffer.set(&[1], &[2]).unwrap();
    assert!(!needs(&buffer));
    buffer.delete_with_flags(&[1], &constraint).unwrap();
    assert!(needs(&buffer));
    buffer.delete(&[1]).unwrap();
    assert!(!needs(&buffer));
}

#[test]
fn insert_presumes_absence_unless_the_buffer_knows() {
    let mut buffer = MemBuffer::new();
    buffer.insert(b"new", b"1").unwrap();
    assert!(buffer.presumes_not_exists(b"new"));
    assert_eq!(
        buffer.insert(b"new", b"2"),
        Err(Error::KeyExists { key: "new".into() })
    );

    buffer.delete(b"old").unwrap();
    buffer.insert(b"old", b"1").unwrap();
    assert!(
        !buffer.presumes_not_exists(b"old"),
        "the buffer deleted it, so it is absent"
    );

    buffer.delete(b"new").unwrap();
    buffer.insert(b"new", b"3").unwrap();
    assert!(buffer.presumes_not_exists(b"new"), "it was inserted before");
}

#[test]
fn mem_buffer_cache() {
    type Call = fn(&mut MemBuffer);
    let calls: [(bool, Call); 10] = [
        (false, |b| b.set(&[1], &[0]).unwrap()),
        (true, |b| b.set(&[1], &[1]).unwrap()),
        (false, |b| b.set(&[2], &[2]).unwrap()),
        (true, |b| {
            assert_eq!(b.get(&[2]).unwrap().unwrap(), [2].as_slice())
        }),
        (false, |b| {
            assert_eq!(b.get(&[1]).unwrap().unwrap(), [1].as_slice())
        }),
        (true, |b| {
            assert_eq!(b.get(&[1]).unwrap().unwrap(), [1].as_slice())
        }),
        (false, |b| {
            assert_eq!(b.get(&[2]).unwrap().unwrap(), [2].as_slice())
        }),
        // What is not found is not remembered.
        (false, |b| assert_eq!(b.get(&[3]).unwrap(), None)),
        (true, |b| b.set(&[2], &[2, 2]).unwrap()),
        (true, |b| assert!(b.flags(&[2]).is_some())),
    ];
    let mut buffer = MemBuffer::new();
    let (mut hits, mut misses) = (0, 0);
    for (hit, call) in calls {
        call(&mut buffer);
        (hits, misses) = if hit {
            (hits + 1, misses)
        } else {
            (hits, misses + 1)
        };
        assert_eq!(buffer.cache_hits_and_misses(), (hits, misses));
    }
}

#[test]
fn read_only_zero_mem() {
    let buffer = MemBuffer::new();
    assert_eq!(buffer.get(b"k").unwrap(), None);
    assert_eq!((buffer.mem(), buffer.used()), (0, 0));
}

/// Stands for client-go's test of the memory hook: a caller asks after each write.
#[test]
fn set_memory_footprint_change_hook() {
    let mut buffer = MemBuffer::new();
    assert_eq!(buffer.mem(), 0);
    buffer.set(&[1], &[1]).unwrap();
    assert!(buffer.mem() > 0);
    let (mem, used) = (buffer.mem(), buffer.used());
    for i in 0..10_000 {
        buffer.update_flags(&n(i), &[]).unwrap();
    }
    assert!(
        buffer.mem() > mem && buffer.used() > used,
        "flags take memory, too"
    );
    buffer.reset();
    assert_eq!((buffer.mem(), buffer.used()), (0, 0));
}

#[test]
fn reset() {
    let mut buffer = filled(1000);
    buffer.set_limits(10, 0);
    let _open = buffer.staging();
    buffer.reset();
    assert_eq!(buffer.get(&n(0)).unwrap(), None);
    assert_eq!(buffer.flags(&n(0)), None);
    assert!(buffer.iter_with_flags(..).next().is_none());
    assert_eq!(
        (buffer.len(), buffer.size(), buffer.stage_depth()),
        (0, 0, 0)
    );
    assert!(!buffer.is_dirty());
    assert!(buffer.set(&[0; 10], &[1]).is_err(), "limits stay");
}

#[test]
fn discard_values() {
    let mut buffer = MemBuffer::new();
    buffer
        .set_with_flags(&[1], &[2], &[FlagOp::SetKeyLocked])
        .unwrap();
    let handle = buffer.entry(&[1]).unwrap().handle().with_user_data(0x8007);
    assert_eq!(handle.user_data(), 0x8007);
    assert_eq!(buffer.value_by_handle(handle).unwrap(), [2].as_slice());
    let (len, size) = (buffer.len(), buffer.size());
    let stage = buffer.staging();

    buffer.discard_values();
    assert_eq!(buffer.key_by_handle(handle), Some([1].into()));
    assert_eq!(buffer.value_by_handle(handle), None);
    assert_eq!((buffer.len(), buffer.size()), (len, size));
    assert_eq!(buffer.flags(&[1]), Some(KeyFlags::LOCKED));
    let entry = buffer.iter(..).next().unwrap();
    assert!(entry.has_value() && entry.value().is_none());
    assert_eq!(entry.value_len(), 1);

    let ended = Error::TransactionEnded;
    assert_eq!(buffer.get(&[1]).unwrap_err(), ended);
    assert_eq!(buffer.get(&[3]).unwrap_err(), ended);
    assert_eq!(buffer.history(&[1]).unwrap_err(), ended);
    assert_eq!(buffer.get_at(&buffer.snapshot(), &[1]).unwrap_err(), ended);
    let mut cursor = buffer.cursor(.., Direction::Forward);
    assert_eq!(buffer.page(&mut cursor, 1).unwrap_err(), ended);
    assert_eq!(buffer.set(&[3], &[4]).unwrap_err(), ended);
    assert_eq!(buffer.delete(&[3]).unwrap_err(), ended);
    assert_eq!(buffer.update_flags(&[1], &[]).unwrap_err(), ended);
    buffer.cleanup(stage).unwrap();
    assert_eq!(
        (buffer.len(), buffer.stage_depth()),
        (len, 0),
        "nothing is undone any more"
    );
}

#[test]
fn sealed_values_are_shared_and_unchanged() {
    let mut buffer = filled(1000);
    buffer.seal();
    let ptr = |buffer: &MemBuffer| buffer.get(&n(7)).unwrap().unwrap().as_ptr();
    assert_eq!(ptr(&buffer), ptr(&buffer), "no copy");
    let entry = buffer.entry(&n(7)).unwrap();
    assert_eq!(entry.to_key().as_ptr(), entry.key().as_ptr());
    let (held, key) = (entry.to_value().unwrap(), entry.to_key());
    buffer.set(&n(7), &n(70)).unwrap();
    assert_eq!(held, n(7).as_slice());
    drop(buffer);
    assert_eq!(&*key, n(7), "what is held outlives the buffer");
}

#[test]
fn a_buffer_may_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<MemBuffer>();
}
