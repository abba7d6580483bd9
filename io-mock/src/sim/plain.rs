//! A client of raw keys for this module's own tests: the [wire](crate::workload::wire), in one
//! operation per call that begins again whatever went wrong.

use std::sync::Arc;

use tikv_core::driver::Operation;
use tikv_core::wire::{Call, RegionResponse};
use tikv_core::{Key, Value};
use tikv_proto::kvrpcpb;

use super::Sim;
use crate::workload::wire::region::Wire;
use crate::workload::wire::{Task, operation};

#[derive(Clone)]
pub(super) struct Plain {
    wire: Arc<Wire>,
}

impl Plain {
    pub(super) fn new(sim: &Sim) -> Self {
        Plain {
            wire: Arc::new(Wire::raw(sim)),
        }
    }

    pub(super) fn put(&self, key: Key, value: Value) -> Operation<()> {
        operation("put", self.wire.clone(), |task| async move {
            let (key, value) = (key.into_bytes(), value.into_bytes());
            let request = kvrpcpb::RawPutRequest {
                key: key.clone(),
                value,
                ..Default::default()
            };
            call(task, &key, request).await;
        })
    }

    pub(super) fn get(&self, key: Key) -> Operation<Option<Value>> {
        operation("get", self.wire.clone(), |task| async move {
            let key = key.into_bytes();
            let request = kvrpcpb::RawGetRequest {
                key: key.clone(),
                ..Default::default()
            };
            let answer = call(task, &key, request).await;
            (!answer.not_found).then(|| answer.value.into())
        })
    }
}

async fn call<C>(task: Task, key: &[u8], request: C) -> C::Response
where
    C: Call,
    C::Response: RegionResponse,
{
    loop {
        if let Ok(answer) = task.again().call(key, request.clone()).await {
            return answer;
        }
    }
}
