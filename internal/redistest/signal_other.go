//go:build !unix

package redistest

func pause(*run) { panic("redistest: this system cannot pause a process") }

func resume(*run) { panic("redistest: this system cannot pause a process") }
