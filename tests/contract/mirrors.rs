//! Which of PyTorch's tests are mirrored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push(path);
        }
    }
}

/// Every mark names a test of PyTorch's once, and stands above a test of ours; and there are enough of them.
#[test]
fn mirrored_tests_are_named_once_and_many() {
    let mut files = vec![];
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"), &mut files);
    let mark = concat!("// test_autograd.", "py::");
    let mut mirrored: BTreeMap<String, String> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (i, line) in lines.iter().enumerate() {
            let Some(names) = line.strip_prefix(mark) else { continue };
            let at = format!("{}:{}", file.display(), i + 1);
            let test = lines[i..].iter().find(|l| !l.starts_with("//"));
            assert_eq!(test, Some(&"#[test]"), "{at}: no test below the mark");
            for name in names.split(", ") {
                let plain =
                    name.split("::").all(|part| part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                assert!(plain && name.contains("test_"), "{at}: {name} is no test's name");
                if let Some(other) = mirrored.insert(name.into(), at.clone()) {
                    panic!("{name} is named at {other} and at {at}");
                }
            }
        }
    }
    eprintln!("{} tests of PyTorch's are mirrored", mirrored.len());
    assert!(mirrored.len() >= 120, "only {} tests of PyTorch's are mirrored", mirrored.len());
}
