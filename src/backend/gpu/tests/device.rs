//! Memory, reading, faults, templates.

use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::error::ErrorKind;
use crate::graph::dtype::DType::{F32, I32};

fn unique_sizes() -> impl Iterator<Item = usize> {
    (0..40).flat_map(|k| [1usize << (k % 27), (1 << (k % 27)) + 1, 3 << (k % 25)])
}

#[test]
fn size_classes_waste_less_than_a_quarter() {
    for bytes in unique_sizes() {
        let class = pool::size_class(bytes as u64);
        assert!(class >= bytes as u64 && class.is_multiple_of(16));
        assert!(bytes < 64 || class as f64 <= bytes as f64 * 1.25, "{bytes} in {class}");
    }
}

/// A pool of its own, so that other tests do not count.
fn own_pool(gpu: &Gpu) -> Arc<pool::Pool> {
    pool::Pool::new(gpu.device.clone(), gpu.queue.clone(), 1 << 20)
}

#[test]
fn buffers_return_to_the_pool() {
    let pool = own_pool(&gpu());
    let a = pool.get(1000).unwrap();
    let id = run::storage(&a).unwrap().id();
    let also = a.clone();
    drop(a);
    assert_eq!((pool.memory().live_buffers, pool.memory().pooled_bytes), (1, 0));
    drop(also);
    assert_eq!((pool.memory().live_bytes, pool.memory().pooled_bytes), (0, 1024));
    let b = pool.get(1024).unwrap();
    assert_eq!(run::storage(&b).unwrap().id(), id);
    drop(b);
    assert!(pool.empty());
    assert_eq!(pool.memory(), Memory::default());
}

#[test]
fn areas_serve_any_size_and_make_way_for_larger_ones() {
    let pool = own_pool(&gpu());
    let id = |buffer: &Buffer| run::storage(buffer).unwrap().id();
    let first = id(&pool.get_area(1000).unwrap());
    assert_ne!(id(&pool.get(1000).unwrap()), first);
    pool.empty();
    let first = id(&pool.get_area(1000).unwrap());
    let small = pool.get_area(500).unwrap();
    assert_eq!((id(&small), small.bytes), (first, 500));
    let other = pool.get_area(500).unwrap();
    drop((small, other));
    assert_eq!(pool.memory().pooled_bytes, 1024 + 512);
    let large = pool.get_area(5000).unwrap();
    assert_eq!(pool.memory().pooled_bytes, 512, "the larger of the two");
    drop(large);
    assert_eq!(pool.memory().pooled_bytes, 512 + 5120);
}

#[test]
fn too_large_a_buffer_says_which_limit() {
    let fault = own_pool(&gpu()).get((1 << 20) + 1).err().unwrap();
    assert_eq!(fault.kind, ErrorKind::Limit);
    assert!(fault.message.contains("1048577") && fault.message.contains("max_storage_buffer_binding_size"));
}

#[test]
fn reads_back_any_part() {
    let gpu = gpu();
    let data: Vec<u8> = (0..103).collect();
    let buffer = gpu.upload(&data).unwrap();
    for range in [0..103, 0..0, 103..103, 4..8, 3..9, 102..103] {
        assert_eq!(gpu.download(&buffer, range.clone()).unwrap(), data[range]);
    }
    assert!(gpu.download(&buffer, 100..104).is_err());
    let empty = gpu.upload(&[]).unwrap();
    assert!(gpu.download(&empty, 0..0).unwrap().is_empty());
    gpu.synchronize().unwrap();
}

struct Unpark(std::thread::Thread);
impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn reads_without_blocking() {
    let gpu = gpu();
    let data: Vec<Vec<u8>> = (0..10u8).map(|i| vec![i; 1000 + usize::from(i)]).collect();
    let buffers: Vec<Buffer> = data.iter().map(|d| gpu.upload(d).unwrap()).collect();
    let mut reads: Vec<_> = buffers.iter().map(|b| gpu.download_async(b, 0..b.bytes)).collect();
    drop(buffers);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    for (read, expected) in reads.iter_mut().zip(data) {
        let value = loop {
            match read.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(value) => break value,
                Poll::Pending => std::thread::park(),
            }
        };
        assert_eq!(value.unwrap(), expected);
    }
}

#[test]
fn many_threads_use_one_device() {
    let gpu = gpu();
    std::thread::scope(|scope| {
        for t in 0..4u8 {
            let gpu = &gpu;
            scope.spawn(move || {
                for i in 0..50u8 {
                    let data = vec![t ^ i; 5000];
                    let buffer = gpu.upload(&data).unwrap();
                    assert_eq!(gpu.download(&buffer, 0..5000).unwrap(), data);
                }
            });
        }
    });
}

#[test]
fn a_rejected_shader_is_a_fault() {
    static WRONG: MapOp = op("wrong", 1, "no_such_function(a)");
    let gpu = gpu();
    let l = Layout::contiguous(&[4]);
    let mut b = Build::over(&[4]);
    let x = b.load(0, F32, l.clone());
    let y = b.f(&WRONG, &[x]);
    let k = kernel(Body::Map(vec![b.store(y, 1, F32, l).done()]), &[(F32, false), (F32, true)], &[]);
    let fault = gpu.compile(&dispatch(k), false).err().unwrap();
    assert_eq!((fault.kind, fault.command), (ErrorKind::Backend, Some(0)));
    assert!(fault.message.contains("no_such_function"), "{}", fault.message);
    // And nothing is left behind.
    gpu.synchronize().unwrap();
}

#[test]
fn uncaptured_errors_come_out_of_the_next_call() {
    let shared = gpu();
    // Nothing but this test uses these, so no other test can take the fault.
    let faults = Arc::new(Faults::default());
    let sink = faults.clone();
    sink.put(Fault { kind: ErrorKind::Backend, message: "first".into(), command: None });
    sink.put(Fault { kind: ErrorKind::Backend, message: "second".into(), command: None });
    let (info, caps) = (shared.info.clone(), shared.caps.clone());
    let (device, queue) = (shared.device.clone(), shared.queue.clone());
    let gpu = Gpu::new(info, caps, device, queue, faults, shared.pool.clone());
    assert_eq!(gpu.alloc(4).err().unwrap().message, "first");
    assert!(gpu.alloc(4).is_ok());
    // wgpu's own validation: a bad copy is a fault, not a panic.
    let a = gpu.alloc(4).unwrap();
    let recording = Recording { commands: vec![Command::Copy { from: 0, to: 1, bytes: 1 << 20 }] };
    let compiled = gpu.compile(&recording, false).unwrap();
    assert!(gpu.run(&recording, &compiled, &[a.clone(), a.clone()], &[]).is_err());
    assert!(gpu.run(&recording, &compiled, &[a], &[]).is_err());
    gpu.synchronize().unwrap();
}

#[test]
fn copies_and_dispatches_keep_their_order() {
    let gpu = gpu();
    let l = Layout::contiguous(&[8]);
    let double = |from: u16, to: u16| {
        let mut b = Build::over(&[8]);
        let x = b.load(from, I32, l.clone());
        let y = b.op(&ADD, I32, I32, &[x, x]);
        let bindings = [(I32, from == 1), (I32, to == 1)];
        Arc::new(kernel(Body::Map(vec![b.store(y, to, I32, l.clone()).done()]), &bindings, &[]))
    };
    let recording = Recording {
        commands: vec![
            Command::Dispatch { kernel: double(0, 1), buffers: vec![0, 1], scalars: 0 },
            Command::Copy { from: 1, to: 2, bytes: 32 },
            Command::Dispatch { kernel: double(0, 1), buffers: vec![1, 0], scalars: 0 },
            Command::Copy { from: 0, to: 1, bytes: 16 },
            Command::Copy { from: 0, to: 1, bytes: 0 },
        ],
    };
    for _ in 0..3 {
        let got = run(&gpu, &recording, &[vec![1; 8], vec![0; 8], vec![0; 8]], &[]);
        assert_eq!(got, [vec![4; 8], [vec![4; 4], vec![2; 4]].concat(), vec![2; 8]]);
    }
}

#[test]
fn runs_are_timed() {
    let gpu = gpu();
    if !gpu.info.features.contains(wgpu::Features::TIMESTAMP_QUERY) {
        return;
    }
    // On a device of its own state: profiling is for all runs.
    let (info, caps, pool) = (gpu.info.clone(), gpu.caps.clone(), gpu.pool.clone());
    let gpu = Gpu::new(info, caps, gpu.device.clone(), gpu.queue.clone(), gpu.faults.clone(), pool);
    gpu.profile(true);
    let n = 1 << 16;
    let l = Layout::contiguous(&[n]);
    let mut b = Build::over(&[n]);
    let x = b.load(0, F32, l.clone());
    let y = b.f(&RELU, &[x]);
    let k =
        Arc::new(kernel(Body::Map(vec![b.store(y, 1, F32, l).done()]), &[(F32, false), (F32, true)], &[]));
    let command = || Command::Dispatch { kernel: k.clone(), buffers: vec![0, 1], scalars: 0 };
    let recording = Recording { commands: (0..2100).map(|_| command()).collect() };
    run(&gpu, &recording, &[floats(n), vec![0; n]], &[]);
    let timings = gpu.profile(false);
    assert_eq!(timings.len(), 2100);
    assert!(timings.iter().all(|t| t.bytes == 8 * n as u64 && t.flops == n as u64));
    assert!(timings.iter().filter(|t| !t.duration.is_zero()).count() > 1000);
}

#[test]
fn a_bad_index_is_reported_once_with_its_line() {
    let gpu = gpu();
    let status = gpu.status.lock();
    let mut bytes = vec![0u8; status.bytes() as usize];
    assert!(status.check(&bytes).is_ok());
    drop(status);
    let mut own = run::Status::new(&gpu.device);
    let k = Arc::new(kernel(Body::Map(vec![]), &[], &[]));
    assert_eq!(own.word(&k), own.word(&k));
    bytes = vec![0u8; own.bytes() as usize];
    bytes[0] = 1;
    let fault = own.check(&bytes).err().unwrap();
    assert_eq!(fault.kind, ErrorKind::Index);
    assert!(fault.message.contains("device.rs") || fault.message.contains("mod.rs"), "{}", fault.message);
}

#[test]
fn templates_expand() {
    let shared = [(
        "a",
        "fn twice(x: F) -> F {\n    return x + x;\n}\nfn four_times(x: F) -> F {\n    return twice(twice(x));\n}\n",
    )];
    let library = template::Library::new(shared).unwrap();
    let expand = |text: &str, defines: &[(&str, String)]| {
        template::expand(text, &library, &template::Fill { defines, ..Default::default() })
    };
    let text = "#import a\n#if X\nlet y = four_times4(${N});\n#else\nlet y = twice(${N});\n#endif\n";
    let wide = expand(text, &[("X", "1".into()), ("N", "z".into())]).unwrap();
    assert!(
        wide.contains("let y = four_times4(z);") && wide.contains("fn twice4(x: vec4<f32>) -> vec4<f32>")
    );
    let narrow = expand(text, &[("X", "0".into()), ("N", "z".into())]).unwrap();
    assert!(narrow.contains("fn twice(x: f32) -> f32") && !narrow.contains("four_times"));
    assert!(expand(text, &[]).is_err());
    assert!(expand("#if X", &[]).is_err());
    assert!(expand("#else", &[]).is_err());
    assert!(expand("#nonsense", &[]).is_err());
    assert!(expand("#import nothing", &[]).is_err());
}
