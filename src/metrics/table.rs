//! Plain tables: columns as wide as their widest cell, numbers to the right, two blanks between.

/// The text of a table. `header` names the columns; a column whose name begins with a blank is aligned to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].trim_start().chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let padded = cells.iter().zip(header).zip(&widths).map(|((cell, name), &width)| {
            if name.starts_with(' ') { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let names: Vec<&str> = header.iter().map(|name| name.trim_start()).collect();
    let mut lines = vec![line(&names)];
    lines.extend(rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_to_the_right() {
        let rows = [["7", "a/b", "1.5"], ["12", "longer/name", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&[" uid", "repository", " loss"], &rows),
            "uid  repository   loss\n  7  a/b           1.5\n 12  longer/name"
        );
    }
}
