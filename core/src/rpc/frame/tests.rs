use proptest::prelude::*;
use prost::Message;
use quickcheck::quickcheck;
use tikv_proto::tikvpb::batch_commands_request::{Request, request::Cmd as RequestCmd};
use tikv_proto::tikvpb::batch_commands_response::{Response as Reply, response::Cmd};
use tikv_proto::tikvpb::{BatchCommandsEmptyResponse, BatchCommandsRequest, BatchCommandsResponse};

use super::*;

fn context(region_id: u64) -> kvrpcpb::Context {
    kvrpcpb::Context {
        region_id,
        cluster_id: 7_000_000_000,
        request_source: "external_Get".into(),
        ..Default::default()
    }
}

fn get(key: &[u8]) -> kvrpcpb::GetRequest {
    kvrpcpb::GetRequest {
        key: Bytes::copy_from_slice(key),
        version: 443_852_055_297_916_932,
        ..Default::default()
    }
}

fn put(key: &[u8], value: &[u8]) -> kvrpcpb::RawPutRequest {
    kvrpcpb::RawPutRequest {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        ..Default::default()
    }
}

fn response(not_found: bool, value: Bytes) -> kvrpcpb::GetResponse {
    kvrpcpb::GetResponse {
        not_found,
        value,
        ..Default::default()
    }
}

fn item(id: u64, arm: u32, body: impl Into<Bytes>) -> Item {
    let body = body.into();
    Item { id, arm, body }
}

quickcheck! {
    // client-go: TestEncodedBatchCmd_SizeAndMarshalTo, TestEncodeRequestCmd_Basic
    fn concatenated_parts_are_the_encoded_message(
        keys: Vec<(Vec<u8>, Option<u64>)>, first_id: u32, sent: u64
    ) -> bool {
        let mut parts = Vec::new();
        let mut message = BatchCommandsRequest {
            client_send_time_ns: sent,
            ..Default::default()
        };
        for (i, (key, region)) in keys.iter().enumerate() {
            let context = region.map(context).map(Box::new);
            let (command, cmd) = if i % 2 == 0 {
                let body = get(key);
                let whole = kvrpcpb::GetRequest { context: context.clone(), ..body.clone() };
                (Command::from(body), RequestCmd::Get(whole))
            } else {
                let body = put(key, &key.repeat(30));
                let whole = kvrpcpb::RawPutRequest { context: context.clone(), ..body.clone() };
                (Command::from(body), RequestCmd::RawPut(whole))
            };
            parts.extend(encode_part(context.as_deref(), &command));
            message.requests.push(Request { cmd: Some(cmd) });
            message.request_ids.push(u64::from(first_id) + i as u64);
        }
        let frame = RequestFrame::new(first_id.into(), parts);
        let bytes = frame.to_bytes(sent);
        bytes == message.encode_to_vec()
            && bytes.len() == frame.encoded_len(sent)
            && frame.ids().eq(message.request_ids)
    }

    fn a_frame_of_answers_is_the_encoded_message(
        answers: Vec<(u64, bool, Vec<u8>)>, load: u64, feedback: Option<(u64, u64, i32)>,
        sent: u64
    ) -> bool {
        let answers: Vec<_> = answers
            .into_iter()
            .map(|(id, not_found, value)| (id, response(not_found, value.into())))
            .collect();
        let message = BatchCommandsResponse {
            responses: answers
                .iter()
                .map(|(_, body)| Reply { cmd: Some(Cmd::Get(body.clone())) })
                .collect(),
            request_ids: answers.iter().map(|(id, _)| *id).collect(),
            transport_layer_load: load,
            health_feedback: feedback.map(|(store_id, feedback_seq_no, slow_score)| {
                kvrpcpb::HealthFeedback { store_id, feedback_seq_no, slow_score }
            }),
            tikv_send_time_ns: sent,
        };
        let split = SplitFrame {
            items: answers
                .iter()
                .map(|(id, body)| item(*id, 1, body.encode_to_vec()))
                .collect(),
            transport_layer_load: load,
            health_feedback: feedback.map(|(store_id, seq, slow_score)| HealthFeedback {
                store_id,
                seq,
                slow_score,
            }),
            tikv_send_time_ns: sent,
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        split.encode() == bytes && split_response(bytes) == Ok(split)
    }

    fn requests_come_apart_as_they_were_put_together(keys: Vec<Vec<u8>>, sent: u64) -> bool {
        let commands: Vec<_> = keys.iter().map(|key| Command::from(get(key))).collect();
        let parts = commands.iter().map(|command| encode_part(None, command).unwrap());
        let frame = RequestFrame::new(5, parts.collect());
        let split = split_request(frame.to_bytes(sent)).unwrap();
        let again = split.items.iter().map(|item| {
            Command::decode_batched(item.arm, item.body.clone()).unwrap().unwrap()
        });
        again.eq(commands)
            && split.items.iter().map(|item| item.id).eq(frame.ids())
            && split.client_send_time_ns == sent
    }

    fn built_answers_come_apart(answers: Vec<(u64, u8, Vec<u8>)>) -> bool {
        let answers: Vec<_> = answers
            .into_iter()
            .map(|(id, arm, body)| (id, u32::from(arm) + 1, Bytes::from(body)))
            .collect();
        let split = split_response(build_response(&answers)).unwrap();
        split.items.into_iter().map(|item| (item.id, item.arm, item.body)).eq(answers)
    }

    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) -> bool {
        let bytes = Bytes::from(bytes);
        let _ = split_request(bytes.clone());
        agrees_with_prost(bytes)
    }
}

/// Whatever prost takes for a message is a frame of the same answers, unless its items can't
/// be paired or it has groups. (The other way round does not hold: bodies are not looked into.)
fn agrees_with_prost(bytes: Bytes) -> bool {
    let split = split_response(bytes.clone());
    let Ok(message) = BatchCommandsResponse::decode(bytes) else {
        return true;
    };
    match split {
        Err(FrameError::WireType { wire_type, .. }) => wire_type == 3,
        Err(FrameError::Unpaired { items, ids }) => {
            items == message.responses.len() && ids == message.request_ids.len()
        }
        Err(_) => false,
        Ok(split) => {
            split
                .items
                .iter()
                .map(|item| item.id)
                .eq(message.request_ids)
                && split.items.len() == message.responses.len()
                && split.transport_layer_load == message.transport_layer_load
                && split.tikv_send_time_ns == message.tikv_send_time_ns
                && split.health_feedback
                    == message.health_feedback.map(|feedback| HealthFeedback {
                        store_id: feedback.store_id,
                        seq: feedback.feedback_seq_no,
                        slow_score: feedback.slow_score,
                    })
        }
    }
}

/// The field of a frame, and whether its order among those of its kind matters.
#[derive(Clone, Debug)]
enum Field {
    Item(u32, Vec<u8>),
    Id(u64),
    Ids(Vec<u64>),
    Load(u64),
    Unknown(Vec<u8>),
}

impl Field {
    fn put(&self, buf: &mut Vec<u8>) {
        match self {
            Field::Item(arm, body) => put_item(*arm, body, buf),
            // Never left out, as a repeated field of 0 is something else than none.
            Field::Id(id) => {
                encode_key(IDS, WireType::Varint, buf);
                encode_varint(*id, buf);
            }
            Field::Ids(ids) => put_ids(ids.iter().copied(), buf),
            Field::Load(load) => put_u64(RESPONSE_LOAD, *load, buf),
            Field::Unknown(bytes) => buf.extend_from_slice(bytes),
        }
    }
}

fn field() -> impl Strategy<Value = Field> {
    let unknown = prop_oneof![
        (6u32..90, any::<u64>()).prop_map(|(field, value)| {
            let mut buf = Vec::new();
            encode_key(field, WireType::Varint, &mut buf);
            encode_varint(value, &mut buf);
            buf
        }),
        (6u32..90, any::<u64>()).prop_map(|(field, value)| {
            let mut buf = Vec::new();
            encode_key(field, WireType::SixtyFourBit, &mut buf);
            buf.put_u64(value);
            buf
        }),
        (6u32..90, any::<u32>()).prop_map(|(field, value)| {
            let mut buf = Vec::new();
            encode_key(field, WireType::ThirtyTwoBit, &mut buf);
            buf.put_u32(value);
            buf
        }),
        (6u32..90, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(field, value)| {
            let mut buf = Vec::new();
            prost::encoding::bytes::encode(field, &value, &mut buf);
            buf
        }),
    ];
    prop_oneof![
        3 => (1u32..300, prop::collection::vec(any::<u8>(), 0..200))
            .prop_map(|(arm, body)| Field::Item(arm, body)),
        3 => any::<u64>().prop_map(Field::Id),
        1 => prop::collection::vec(any::<u64>(), 1..5).prop_map(Field::Ids),
        1 => (1..500u64).prop_map(Field::Load),
        1 => unknown.prop_map(Field::Unknown),
    ]
}

proptest! {
    /// Ids packed and not, fields in any order, unknown ones in between.
    #[test]
    fn fields_come_in_any_order(fields in prop::collection::vec(field(), 0..30)) {
        let mut bytes = Vec::new();
        let mut items = Vec::new();
        let mut ids = Vec::new();
        let mut load = 0;
        for field in &fields {
            field.put(&mut bytes);
            match field {
                Field::Item(arm, body) => items.push((*arm, Bytes::from(body.clone()))),
                Field::Id(id) => ids.push(*id),
                Field::Ids(run) => ids.extend(run),
                Field::Load(value) => load = *value,
                Field::Unknown(_) => {}
            }
        }
        let split = split_response(bytes.into());
        if items.len() != ids.len() {
            let unpaired = FrameError::Unpaired { items: items.len(), ids: ids.len() };
            prop_assert_eq!(split, Err(unpaired));
        } else {
            let split = split.unwrap();
            let expected: Vec<_> = ids
                .into_iter()
                .zip(items)
                .map(|(id, (arm, body))| item(id, arm, body))
                .collect();
            prop_assert_eq!(split.items, expected);
            prop_assert_eq!(split.transport_layer_load, load);
        }
    }

    /// A frame with one byte changed, or cut short, is taken apart as prost does, or refused.
    #[test]
    fn damaged_frames_never_panic(
        values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..4),
        at: prop::sample::Index,
        byte: u8,
        cut: bool,
    ) {
        let split = SplitFrame {
            items: values
                .into_iter()
                .zip(300u64..)
                .map(|(value, id)| item(id, 1, response(false, value.into()).encode_to_vec()))
                .collect(),
            health_feedback: Some(HealthFeedback { store_id: 1, seq: 300, slow_score: -1 }),
            tikv_send_time_ns: u64::MAX,
            ..Default::default()
        };
        let mut bytes = split.encode().to_vec();
        let at = at.index(bytes.len());
        if cut {
            bytes.truncate(at);
        } else {
            bytes[at] = byte;
        }
        prop_assert!(agrees_with_prost(bytes.into()));
    }
}

#[test]
fn every_arm_of_the_catalogue_encodes_like_the_message() {
    let mut known = 0;
    for arm in 0..1024 {
        let Some(command) = Command::decode_batched(arm, Bytes::new()) else {
            continue;
        };
        let part = encode_part(Some(&context(arm.into())), &command.unwrap()).unwrap();
        let frame = RequestFrame::new(1, vec![part]).to_bytes(0);
        let message = BatchCommandsRequest::decode(frame.clone()).unwrap();
        assert!(message.requests[0].cmd.is_some(), "arm {arm}");
        assert_eq!(message.encode_to_vec(), frame, "arm {arm}");
        known += 1;
    }
    assert!(known > 30, "{known}");
    assert_eq!(
        encode_part(None, &Command::GetMembers(Default::default())),
        None
    );
}

#[test]
fn a_part_has_exactly_the_memory_it_needs() {
    for len in [0, 1, 100, 127, 128, 20_000, 3_000_000] {
        let part = encode_part(Some(&context(2)), &get(&vec![b'k'; len]).into()).unwrap();
        let len = part.len();
        assert_eq!(part.try_into_mut().unwrap().capacity(), len);
    }
}

#[test]
fn slices_share_the_memory_of_their_frame() {
    let frame = build_response(&[(1, 1, Bytes::from(vec![7; 100]))]);
    let range = frame.as_ptr_range();
    let split = split_response(frame).unwrap();
    assert!(range.contains(&split.items[0].body.as_ptr()));
}

#[test]
fn what_is_no_frame_is_refused() {
    use FrameError::*;
    let table: [(&[u8], FrameError); 18] = [
        // An item without an id, and the other way round.
        (&[0x0A, 0], Unpaired { items: 1, ids: 0 }),
        (&[0x10, 5], Unpaired { items: 0, ids: 1 }),
        (&[0x12, 2, 5, 6], Unpaired { items: 0, ids: 2 }),
        // Ends too early: key, length, contents, number, fixed numbers, packed id.
        (&[0x80], Truncated),
        (&[0x0A], Truncated),
        (&[0x0A, 5, 0x0A, 1], Truncated),
        (&[0x18, 0x80], Truncated),
        (&[0x39, 1, 2, 3, 4, 5, 6, 7], Truncated),
        (&[0x3D, 1, 2, 3], Truncated),
        (&[0x12, 2, 5, 0x86], Truncated),
        // A body that reaches beyond its item, though not beyond the frame.
        (&[0x0A, 3, 0x0A, 4, 1, 2, 3, 4], Truncated),
        // A length that no memory has.
        (
            &[0x0A, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1],
            Truncated,
        ),
        // Eleven bytes, and a tenth with more than one bit.
        (
            &[0x18, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1],
            Varint,
        ),
        (
            &[0x18, 128, 128, 128, 128, 128, 128, 128, 128, 128, 2],
            Varint,
        ),
        // Field 0, and one beyond the largest.
        (&[0x02, 0], FieldNumber(0)),
        (&[0x80, 0x80, 0x80, 0x80, 0x10, 0], FieldNumber(1 << 29)),
        // A number where items are, and a group.
        (
            &[0x08, 1],
            WireType {
                field: 1,
                wire_type: 0,
            },
        ),
        (
            &[0x33, 0x34],
            WireType {
                field: 6,
                wire_type: 3,
            },
        ),
    ];
    for (bytes, error) in table {
        assert_eq!(
            split_response(Bytes::copy_from_slice(bytes)),
            Err(error),
            "{bytes:?}"
        );
    }
}

#[test]
fn a_frame_that_was_refused_leaves_nothing_behind() {
    let mut split = SplitFrame::default();
    split.read(build_response(&[(1, 1, Bytes::new())])).unwrap();
    assert_eq!(split.items.len(), 1);
    split
        .read(Bytes::from_static(&[0x18, 7, 0x0A]))
        .unwrap_err();
    assert_eq!(split, SplitFrame::default());
}

// client-go: TestBatchResponse
#[test]
fn an_item_without_a_command_is_seen_as_such() {
    let message = BatchCommandsResponse {
        responses: vec![Reply { cmd: None }],
        request_ids: vec![9],
        ..Default::default()
    };
    let split = split_response(message.encode_to_vec().into()).unwrap();
    assert_eq!(split.items, [item(9, 0, "")]);
    assert_eq!(split.encode(), message.encode_to_vec());
}

#[test]
fn an_answer_is_read_by_whoever_asked() {
    let address: Arc<str> = Arc::from("tikv-1:20160");
    let command = Command::from(get(b"k"));
    let expected = response(false, "v".into());
    let body = Bytes::from(expected.encode_to_vec());
    let right = Answer { arm: 1, body };
    let (mut wrong, mut broken) = (right.clone(), right.clone());
    wrong.arm = 255;
    broken.body = Bytes::from_static(&[0xFF]);

    assert_eq!(
        right.decode(&command, &address),
        Ok(Response::Get(expected))
    );
    for answer in [wrong, broken] {
        let error = answer.decode(&command, &address).unwrap_err();
        assert!(
            matches!(&error, TransportError::Decode { address: a, .. } if *a == address),
            "{error}"
        );
    }
}

#[test]
fn the_empty_command_of_a_test_server_is_an_arm_like_others() {
    let message = BatchCommandsResponse {
        responses: vec![Reply {
            cmd: Some(Cmd::Empty(BatchCommandsEmptyResponse { test_id: 7 })),
        }],
        request_ids: vec![1],
        ..Default::default()
    };
    let split = split_response(message.encode_to_vec().into()).unwrap();
    assert_eq!(split.items, [item(1, 255, &[0x08, 7][..])]);
}
