//! The mount planner: any list of mounts is refused, or planned as long as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::{Mount, Spec};
use podling_runtime::container;

fuzz_target!(|text: &[u8]| {
    let Ok(mounts) = serde_json::from_slice::<Vec<Mount>>(text) else {
        return;
    };
    let count = mounts.len();
    let mut spec = Spec::default();
    spec.set_mounts(Some(mounts));
    if container::validate(&spec).is_ok()
        && let Ok(planned) = container::plan_mounts(&spec)
    {
        assert_eq!(planned, count);
    }
});
