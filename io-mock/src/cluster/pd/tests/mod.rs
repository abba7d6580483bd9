//! PD's own tests of safe points, carried over from `pkg/gc/gc_state_manager_test.go` and
//! `tests/server/gc/gc_test.go`. They speak through the requests.

mod gc_barriers;
mod gc_bench;
mod gc_points;
mod gc_services;
