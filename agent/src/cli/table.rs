//! Columns of text, as kubectl prints them: no borders, three spaces between.

/// A table whose first row is its head.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: usize = 3;

impl Table {
    pub(super) fn with_head<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        let mut table = Self::default();
        table.row(head);
        table
    }

    pub(super) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// One string for each row, at least as wide as `floor` says for each column, so that rows that are printed
    /// later still line up. `floor` grows with what is printed.
    pub(super) fn lines(&self, floor: &mut Vec<usize>) -> Vec<String> {
        for row in &self.rows {
            floor.resize(floor.len().max(row.len()), 0);
            for (width, cell) in floor.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |row: &Vec<String>| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(floor.iter()) {
                let pad = width + GAP - cell.chars().count();
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', pad));
            }
            line.truncate(line.trim_end().len());
            line
        };
        self.rows.iter().map(line).collect()
    }

    /// The whole, each line ended.
    pub(super) fn render(&self) -> String {
        let mut text = self.lines(&mut Vec::new()).join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tail() {
        let mut table = Table::with_head(["NAME", "X"]);
        table.row(["a-long-name", ""]);
        table.row(["b", "é"]);
        assert_eq!(
            table.render(),
            "NAME          X\na-long-name\nb             é\n"
        );
    }
}
