module github.com/holdfast-ws/holdfast

go 1.25.0
