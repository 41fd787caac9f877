//! Pods as lines of a table.

use super::table::Table;
use crate::api::summary::Summary;

/// Which columns a table of pods has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) namespace: bool,
    pub(super) ip: bool,
    pub(super) images: bool,
}

impl Columns {
    pub(super) fn head(self) -> Vec<String> {
        self.pick(
            [
                "NAMESPACE",
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "IP",
                "IMAGES",
            ]
            .map(String::from),
        )
    }

    pub(super) fn row(self, pod: &Summary) -> Vec<String> {
        self.pick([
            pod.namespace.clone(),
            pod.name.clone(),
            format!("{}/{}", pod.ready, pod.containers),
            pod.state.clone(),
            pod.restarts.clone(),
            pod.age.clone(),
            pod.ip.clone(),
            pod.images.clone(),
        ])
    }

    pub(super) fn table<'a>(self, pods: impl IntoIterator<Item = &'a Summary>) -> Table {
        let mut table = Table::with_head(self.head());
        for pod in pods {
            table.row(self.row(pod));
        }
        table
    }

    fn pick(self, cells: [String; 8]) -> Vec<String> {
        let shown = [
            self.namespace,
            true,
            true,
            true,
            true,
            true,
            self.ip,
            self.images,
        ];
        cells
            .into_iter()
            .zip(shown)
            .filter_map(|(cell, shown)| shown.then_some(cell))
            .collect()
    }
}
